"""Images of files, folders, globs, addresses, videos, webcams and arrays, one after another.

What is missing is found without torch, which takes seconds to import.
"""

import glob
import http.client
import math
import os
import queue
import re
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from clim.errors import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
# FFmpeg opens what a playlist names, whatever the file's ending: containers alone, and nothing but files.
_FFMPEG = "protocol_whitelist;file|format_whitelist;mov,avi,matroska,m4v,mpeg,mpegts,mpegvideo,asf"
URL_BYTES, URL_SECONDS = 64 << 20, 30  # an address may give no more, and take no longer
WEBCAM = "webcam:"
ENOUGH = 0.9  # of the frames that a video's header announces, or of their time: less is reported


class Frame(NamedTuple):
    """An image, uint8 (H, W, 3) RGB. ``number`` (from 0) and ``rate`` (frames a second): of a video or webcam."""

    image: np.ndarray
    name: str
    number: int | None = None
    rate: float | None = None


class Skipped(NamedTuple):
    """An image or video that gives no input, and a short reason."""

    file_name: str
    reason: str


def find_source(source) -> list:
    """The items of a source, without reading them: files (Path), addresses, numbers of webcams, arrays, PIL images.

    Folders are searched with their sub-folders, and every file is named once. UserError for a file that does not
    exist, a folder or glob without images, and what is no source.
    """
    items = (item for entry in (source if isinstance(source, list | tuple) else [source]) for item in _items(entry))
    return list({item if isinstance(item, Path) else i: item for i, item in enumerate(items)}.values())


def read_source(source, *, frames: int | None = None) -> Iterator[Frame | Skipped]:
    """The images of :func:`find_source`, read one by one, or :class:`Skipped`; most ``frames`` of a video or webcam."""
    from clim.data.images import UnreadableImage

    for number, item in enumerate(find_source(source)):
        try:
            yield from islice(_read(item, number), frames)
        except UnreadableImage as error:
            yield Skipped(error.file_name, error.reason)


def check_apart(folder: str | os.PathLike, items: Iterable) -> None:
    """UserError if one of the files among ``items`` lies in ``folder``, where a drawing could replace it."""
    real = os.path.realpath(folder)
    for item in (item for item in items if isinstance(item, Path) and os.path.isfile(item)):
        if real in (os.path.realpath(item.parent), os.path.dirname(os.path.realpath(item))):
            raise UserError(f"{item} lies in {folder}, where its drawing could replace it: name another folder.")


def fetch(address: str, *, limit: int = URL_BYTES, seconds: float = URL_SECONDS) -> bytes:
    """What an http(s) address gives. UnreadableImage where it fails, has over ``limit`` bytes or takes too long."""
    from clim.data.images import UnreadableImage

    given = queue.SimpleQueue()  # timeouts of sockets begin anew with each byte, and names are resolved without any

    def read() -> None:
        try:
            with urllib.request.urlopen(address, timeout=2 * seconds) as answer:
                given.put(answer.read(limit + 1))
        except (OSError, ValueError, http.client.HTTPException) as error:  # HTTPError and URLError are OSErrors
            given.put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        data = given.get(timeout=seconds)
    except queue.Empty:
        raise UnreadableImage(address, f"not there in {seconds:g} s") from None
    if isinstance(data, Exception):
        raise UnreadableImage(address, f"cannot be fetched ({data})") from data
    if len(data) > limit:
        raise UnreadableImage(address, f"over {limit >> 20} MB")
    return data


def _read(item, number: int) -> Iterator[Frame]:
    from clim.data.images import decode_image, read_image, to_rgb

    if isinstance(item, int):
        yield from _read_video(item, f"{WEBCAM}{item}")
    elif isinstance(item, np.ndarray):
        yield Frame(item, f"image_{number}")
    elif isinstance(item, Image.Image):
        name = str(getattr(item, "filename", "") or f"image_{number}")
        yield Frame(to_rgb(item, name=name), name)
    elif isinstance(item, str):
        yield Frame(decode_image(fetch(item), file_name=item, fmt="RGB").image, item)
    elif item.suffix.lower() in VIDEOS:
        yield from _read_video(str(item), str(item))
    else:
        yield Frame(read_image(item, fmt="RGB").image, str(item))


def _read_video(source: str | int, name: str) -> Iterator[Frame]:
    """Frames of a file, or of a webcam without end."""
    import cv2

    from clim.data.images import UnreadableImage, check_file

    if isinstance(source, str):
        check_file(source, most_bytes=math.inf)
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", _FFMPEG)  # OpenCV asks when it opens a file
    video = cv2.VideoCapture(source, cv2.CAP_FFMPEG if isinstance(source, str) else cv2.CAP_ANY)
    try:
        rate, number, seconds = video.get(cv2.CAP_PROP_FPS) or 25.0, 0, 0.0
        while (grabbed := video.read())[0]:
            seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            yield Frame(cv2.cvtColor(grabbed[1], cv2.COLOR_BGR2RGB), name, number, rate)
            number += 1
        if not number:
            raise UnreadableImage(name, "not a video" if isinstance(source, str) else "no webcam there")
        count = video.get(cv2.CAP_PROP_FRAME_COUNT)  # only estimated, where the rate of frames varies
        if max(number, seconds * rate) < ENOUGH * (count - 2):  # MPEG's times may begin late, H.264 in AVI has few
            raise UnreadableImage(name, f"ends after {number} frames, but its header announces about {count:.0f}")
    finally:
        video.release()


def _items(entry) -> Sequence:
    """What one entry of a source stands for."""
    if isinstance(entry, np.ndarray):
        if entry.dtype == np.uint8 and entry.ndim == 3 and entry.shape[2] == 3 and entry.size:
            return [entry]
        raise UserError(f"An array {entry.dtype} {entry.shape} is no image: give uint8 (height, width, 3), RGB.")
    if isinstance(entry, Image.Image) or (isinstance(entry, int) and not isinstance(entry, bool)):
        return [entry]
    if not isinstance(entry, str | os.PathLike):
        remedy = "give files, folders, addresses, PIL images or uint8 arrays (height, width, 3), RGB"
        raise UserError(f"A {type(entry).__module__}.{type(entry).__name__} is no image: {remedy}.")
    text = str(entry)
    if text.lower().startswith(("http://", "https://")):
        return [text]
    if text.startswith(WEBCAM) and text.removeprefix(WEBCAM).isdecimal() and len(text) < len(WEBCAM) + 5:
        return [int(text.removeprefix(WEBCAM))]
    if not text.strip():  # an empty variable of a shell; Path("") would be the working folder
        raise UserError("A source is empty: name files, folders, globs, http(s) addresses or webcam:0.")
    path = Path(entry).expanduser()
    if os.path.lexists(path) and not path.is_dir():  # reading reports a pipe, or a link that leads nowhere
        return [path]
    if path.is_dir():
        found = files_below(path)
    elif glob.has_magic(text):
        found = map(Path, _matches(str(path)))
    else:
        raise UserError(f"{entry} does not exist: name files, folders, globs, http(s) addresses or webcam:0.")
    wanted = sorted({p for p in found if p.suffix.lower() in IMAGES | VIDEOS and not p.is_dir()})
    if not wanted:
        raise UserError(f"{entry} has no image and no video ({', '.join(sorted(IMAGES | VIDEOS))}).")
    return wanted


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder, its sub-folders and those that links name, without hidden ones."""
    for place, names in _walk(folder):
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _walk(folder: str | os.PathLike) -> Iterator[tuple[str, list[str]]]:
    """Each folder below once, though links lead in circles, and the names of its files."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not known and not name.startswith(".")]
        if not known:
            yield place, names


def _matches(pattern: str) -> Iterator[str]:
    """As ``glob.glob``, but ``**`` looks into each folder once."""
    found = re.match(r"(|.*?/)\*\*(?:/(.*))?$", pattern, re.DOTALL)
    if not found:
        yield from glob.iglob(pattern)
        return
    for top in glob.glob(found[1]) if found[1] else ["."]:
        for folder, _ in _walk(top):
            yield from _matches(os.path.join(glob.escape(folder), found[2] or "*"))
