"""What a detector finds: boxes, scores and names, drawn, saved, and in the formats of others.

N detections of an image; boxes are x0, y0, x1, y1 in pixels of the upright image.
"""

import copy
import io
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from pycocotools.mask import encode

from clim.files import remove, replacing, write_json
from clim.sources import Frame, Skipped, check_apart, read_source

if TYPE_CHECKING:  # it takes a second
    import supervision as sv

# A file of matplotlib, which is not imported for it. It has most alphabets.
FONT = str(Path(find_spec("matplotlib").origin).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf")

_JPEG_SIDE = 65_500  # px, the longest of a JPEG
_NAME_BYTES = 200  # of 255, which disks allow: an ending follows

logger = logging.getLogger(__name__)


def draw(
    image: np.ndarray, found: "sv.Detections", labels: Sequence[str], *, novel: Collection[int] = (),
    side: int | None = None, letters: int | None = None,
) -> np.ndarray:  # fmt: skip
    """A copy of ``image``, uint8 RGB, with boxes, masks and labels in the colours of classes; the first lies on top.

    ``novel``: classes whose boxes get a white rim. ``side``: px of the long side, by default the image's, at least 640.
    ``letters``: px of the labels' letters, by default a 50th of it.
    """
    import supervision as sv

    scale = side / max(image.shape) if side else max(640 / max(image.shape), 1.0)
    size = [max(1, round(edge * scale)) for edge in image.shape[1::-1]]
    page = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))[..., ::-1].copy()  # its BGR
    found, labels = found[::-1], labels[::-1]
    found.xyxy, line = found.xyxy * scale, max(2, max(page.shape) // 300)
    letters = letters or max(13, max(page.shape) // 50)
    colours = sv.ColorPalette.DEFAULT
    bright = [np.dot(c.as_rgb(), (0.299, 0.587, 0.114)) > 140 for c in colours.colors]
    inks = sv.ColorPalette([sv.Color.BLACK if of else sv.Color.WHITE for of in bright])
    if found.mask is not None:
        found.mask = np.array([np.asarray(Image.fromarray(m).resize(page.shape[1::-1])) for m in found.mask])
        page = sv.MaskAnnotator(colours).annotate(page, found)
    rims = found[np.isin(found.class_id, list(novel))]
    page = sv.BoxAnnotator(sv.Color.WHITE, thickness=3 * line).annotate(page, rims)
    page = sv.BoxAnnotator(colours, thickness=line).annotate(page, found)
    text = {"font_path": FONT, "font_size": letters, "text_padding": letters // 4, "smart_position": True}
    page = sv.RichLabelAnnotator(colours, text_color=inks, **text).annotate(page, found, labels)
    return np.ascontiguousarray(page[..., ::-1])


class Result:
    """The detections of one image, or of one frame of a video.

    Attributes:
        file_name: file or address; "webcam:0"; "image_3" for the fourth item of a list of arrays.
        frame: its number in the video, from 0; None for an image. ``rate``: frames a second.
        height, width: px.
        names: K class names. ``novel``: indices of those that had no boxes in training.
        found: supervision's Detections, with ``data["class_name"]``; masks are run lengths.
    """

    def __init__(self, frame: Frame, found: "sv.Detections", *, names: Sequence[str], novel: frozenset[int]):
        self.file_name, self.frame, self.rate = frame.name, frame.number, frame.rate
        self.height, self.width = frame.image.shape[:2]
        self.names, self.novel, self._image = list(names), novel, frame.image
        found.data["class_name"] = np.array([names[k] for k in found.class_id], dtype=str)
        self.found = found
        self.boxes: np.ndarray = found.xyxy  # (N, 4)
        self.scores: np.ndarray = found.confidence  # (N,), the highest first where nothing is tracked
        self.classes: np.ndarray = found.class_id  # (N,), indices into names
        self.track_ids: np.ndarray | None = found.tracker_id  # (N,), of an object in a video; -1: it has no track

    def __len__(self) -> int:
        return len(self.found)

    def __repr__(self) -> str:
        place = self.file_name if self.frame is None else f"{self.file_name}, frame {self.frame}"
        return f"Result({place}: {', '.join(self.labels()) or 'nothing'})"

    @property
    def masks(self) -> np.ndarray | None:
        """(N, height, width) bool; None from a detector without masks."""
        return None if self.found.mask is None else np.asarray(self.found.mask)

    @property
    def image(self) -> np.ndarray:
        """uint8 (height, width, 3) RGB; read again from its file where it was not kept."""
        if self._image is None:
            self._image = next(f.image for f in read_source(Path(self.file_name)) if f.number == self.frame)
        return self._image

    def without_image(self) -> "Result":
        """A copy without the pixels of what can be read again from a file."""
        result = copy.copy(self)
        result._image = None if os.path.isfile(self.file_name) else self._image
        return result

    def labels(self) -> list[str]:
        """ "★ dog #3 0.52" of each detection: a star for a class without boxes in training, track, score."""
        stars = ["★ " * (k in self.novel) + self.names[k] for k in self.classes]
        ids = [-1] * len(self) if self.track_ids is None else self.track_ids
        tracks = [f" #{track}" if track >= 0 else "" for track in ids]
        return [f"{name}{track} {score:.2f}" for name, track, score in zip(stars, tracks, self.scores, strict=True)]

    def plot(self, *, side: int | None = None, letters: int | None = None) -> np.ndarray:
        """:func:`draw` of the detections on the image."""
        options = {"novel": self.novel, "side": side, "letters": letters}
        return draw(self.image, self.to_supervision(), self.labels(), **options)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the drawing into ``folder``; returns its path. UserError where the image itself lies there."""
        check_apart(folder, [Path(self.file_name)])
        ((_, name),) = save_each([self], folder)
        return Path(folder) / name

    def to_coco(self, image_id: int | str = 0, *, category_ids: Sequence[int] | None = None) -> list[dict]:
        """COCO's list of results, masks as RLE; ``category_ids``: of each class, by default its index."""
        ids, entries = category_ids or range(len(self.names)), []
        for i, (x0, y0, x1, y1) in enumerate(self.boxes.tolist()):
            entry = {"image_id": image_id, "category_id": ids[int(self.classes[i])], "bbox": [x0, y0, x1 - x0, y1 - y0]}
            entries.append(entry | {"score": float(self.scores[i])})
            if self.found.mask is not None:
                rle = encode(np.asfortranarray(self.found.mask[i], dtype=np.uint8))
                entries[-1]["segmentation"] = rle | {"counts": rle["counts"].decode("ascii")}
        return entries

    def to_dict(self) -> dict:
        """The image's entry in predictions.json (``clim predict --help`` describes it)."""
        detections = []
        for i, entry in enumerate(self.to_coco()):
            kept = {"name": self.names[entry["category_id"]], "category_id": entry["category_id"]}
            kept |= {"score": round(entry["score"], 6), "bbox": [round(v, 2) for v in entry["bbox"]]}
            kept |= {"segmentation": entry["segmentation"]} if "segmentation" in entry else {}
            detections.append(kept | ({} if self.track_ids is None else {"track_id": int(self.track_ids[i])}))
        place = {"file_name": self.file_name} | ({} if self.frame is None else {"frame": self.frame})
        return place | {"height": self.height, "width": self.width, "detections": detections}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict())

    def to_supervision(self) -> "sv.Detections":
        """supervision's Detections, with whole masks."""
        found = copy.copy(self.found)
        found.mask = self.masks
        return found


class Results(list[Result]):
    """The results of all images, in order; ``skipped``: what could not be read."""

    def __init__(self, *, names: Sequence[str], novel: frozenset[int]):
        super().__init__()
        self.names, self.novel = list(names), novel
        self.skipped: list[Skipped] = []

    def plot(self) -> list[np.ndarray]:
        """:meth:`Result.plot` of each."""
        return [result.plot() for result in self]

    def save(self, folder: str | os.PathLike) -> Path:
        """Write NAME.jpg of every image, NAME.mp4 of every video, and predictions.json into ``folder``.

        UserError where one of the images lies there.
        """
        check_apart(folder, [Path(result.file_name) for result in self])
        content = self.to_dict()
        for entry, (_, drawing) in zip(content["images"], save_each(self._with_images(), folder), strict=True):
            entry["drawing"] = drawing
        write_json(Path(folder) / "predictions.json", content, indent=1)
        return Path(folder)

    def to_dict(self) -> dict:
        """Content of predictions.json (``clim predict --help`` describes it)."""
        novel, skipped = [self.names[k] for k in sorted(self.novel)], [item._asdict() for item in self.skipped]
        images = [result.to_dict() for result in self]
        return {"vocabulary": self.names, "novel": novel, "images": images, "skipped": skipped}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict())

    def to_coco(self, image_ids: Sequence | None = None, *, category_ids: Sequence[int] | None = None) -> list[dict]:
        """COCO's list of results; ``image_ids``: of each image, by default its place in this list."""
        pairs = zip(image_ids or range(len(self)), self, strict=True)
        return [entry for number, result in pairs for entry in result.to_coco(number, category_ids=category_ids)]

    def to_supervision(self) -> "list[sv.Detections]":
        """:meth:`Result.to_supervision` of each."""
        return [result.to_supervision() for result in self]

    def _with_images(self) -> Iterator[Result]:
        """Copies with pixels; each video is read once, from its beginning."""
        for (name, is_video), group in groupby(self, key=_place):
            frames = read_source(Path(name)) if is_video and Path(name).is_file() else iter(())
            for result in group:
                result = copy.copy(result)
                if is_video and result._image is None:
                    result._image = next(frame.image for frame in frames if frame.number == result.frame)
                yield result


def save_each(results: Iterable[Result], folder: str | os.PathLike) -> Iterator[tuple[Result, str | None]]:
    """Write each drawing into ``folder`` and give it with its file name: NAME.jpg; of all frames of a video NAME.mp4.

    NAME.png where a side is too long for a JPEG; None where drawing fails, which is logged. Files of these names are
    replaced: :func:`clim.sources.check_apart`. Videos are H.264, which browsers play. It needs even sides, so an odd
    one loses its last pixel.
    """
    folder, used = Path(folder), set()
    folder.mkdir(parents=True, exist_ok=True)
    for (source, is_video), group in groupby(results, key=_place):
        for result in [] if is_video else group:
            drawing, name = _drawn(result), None
            if drawing is not None:
                kind = "JPEG" if max(drawing.shape) <= _JPEG_SIDE else "PNG"
                name = _new_name(source, ".jpg" if kind == "JPEG" else ".png", folder, used)
                content = io.BytesIO()  # PIL itself does not notice a disk that becomes full
                Image.fromarray(drawing).save(content, kind, quality=92)
                with replacing(folder / name) as partial:
                    partial.write_bytes(content.getvalue())
            yield result, name
        if is_video:
            name = _new_name(source, ".mp4", folder, used)
            yield from _write_video(group, folder / name)


def _drawn(result: Result, use: Callable = lambda drawing: drawing):
    """What ``use`` makes of the drawing; None where one of them fails: a run has more results."""
    try:
        return use(result.plot())
    except Exception as error:  # PIL, OpenCV, supervision and encoders raise many types
        logger.warning("%s is not drawn (%s: %s)", result.file_name, type(error).__name__, error)
        return None


def _write_video(results: Iterator[Result], path: Path) -> Iterator[tuple[Result, str | None]]:
    import av

    remove(path)  # not what a link of this name leads to
    with av.open(os.fspath(path), "w") as container:
        stream, refused = container.add_stream("libx264", options={"crf": "23"}), False

        def encode(drawing: np.ndarray) -> list:
            height, width = (side - side % 2 for side in drawing.shape[:2])
            if not stream.codec_context.is_open:
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.framerate = Fraction(result.rate).limit_denominator(1001)
            frame = np.ascontiguousarray(drawing[:height, :width])
            return stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))

        try:
            for result in results:
                packets = None if refused else _drawn(result, encode)
                refused = not stream.codec_context.is_open  # H.264 has sides of 2 to 16,384 px
                container.mux(packets or [])
                yield result, None if packets is None else path.name
        finally:
            if not refused:
                container.mux(stream.encode(None))
    if refused:
        remove(path)


def _place(result: Result) -> tuple[str, bool]:
    return result.file_name, result.frame is not None


def _new_name(source: str, suffix: str, folder: Path, used: set[str]) -> str:
    """A file name for the drawing of ``source`` that is not ``used`` yet, of letters that every disk and page takes."""
    stem = re.sub(r"[\x00-\x1f\x7f:]", "_", Path(source.partition("?")[0]).stem)
    stem = stem.encode("utf-8", "surrogateescape")[:_NAME_BYTES].decode("utf-8", "ignore") or "image"
    name, number = stem + suffix, 2
    while name.casefold() in used or (folder / name).is_dir():
        name, number = f"{stem}_{number}{suffix}", number + 1
    used.add(name.casefold())
    return name
