"""Sources: files, folders, globs, lists, addresses, videos, arrays, PIL images."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from clim.data.images import UnreadableImage
from clim.errors import UserError
from clim.sources import Frame, Skipped, fetch, find_source, read_source


@pytest.fixture
def write_video(tmp_path):
    """``write_video("a.mp4", 5)``: frames whose grey rises by 20; red, green and blue differ in the first one."""

    def write(name, frames, size=(64, 48), codec="mp4v", rate=10.0):
        writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*codec), rate, size)
        for number in range(frames):
            image = np.full((size[1], size[0], 3), 20 * number % 150, np.uint8)
            image[..., 2] += 100  # red
            writer.write(image)
        writer.release()
        return tmp_path / name

    return write


def test_files_folders_globs_and_lists(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.jpg", "sub/film.MP4", ".hidden/d.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = find_source([str(tmp_path), str(tmp_path / "**/*.jpg"), tmp_path / "notes.txt", "webcam:1", 0])
    assert [str(p.relative_to(tmp_path)) for p in found[:-2]] == ["a.PNG", "b.jpg", "sub/c.jpg", "sub/film.MP4",
                                                                  "notes.txt"]  # fmt: skip
    assert found[-2:] == [1, 0] and find_source(found) == found
    assert find_source("https://a.b/c.jpg?x=1") == ["https://a.b/c.jpg?x=1"]
    for missing in (tmp_path / "gone.jpg", "webcam:x"):
        with pytest.raises(UserError, match=f"{missing} does not exist"):
            find_source([tmp_path, missing])
    for empty in (tmp_path / "*.gif", tmp_path / ".hidden/none"):
        empty.name == "none" and empty.mkdir()
        with pytest.raises(UserError, match="has no image and no video"):
            find_source(empty)


def test_links_that_lead_back_end(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.jpg").write_bytes(b"")
    for name in ("one", "two", "sub/three"):
        (tmp_path / name).symlink_to(tmp_path)
    for pattern in ("", "**", "**/*.jpg", "**/sub/**/a.*", "*/**/a.jpg"):
        assert len({path.resolve() for path in find_source(tmp_path / pattern)}) == 1


def test_arrays_and_pil_images():
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(array)
    turned.info["exif"] = exif.tobytes()
    frames = list(read_source([array, turned, Image.fromarray(array[..., 0])]))
    assert [f.name for f in frames] == ["image_0", "image_1", "image_2"] and frames[0].image is array
    assert (frames[1].image == np.rot90(array, -1)).all()
    assert (frames[2].image == array[..., :1]).all() and frames[2].image.shape == (4, 5, 3)
    for wrong in (array / 255, array[..., :2], array[0], np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UserError, match=r"is no image: give uint8 \(height, width, 3\), RGB"):
            find_source(wrong)
    for wrong in (torch.zeros(3, 4, 5), None, True, 1.5):
        with pytest.raises(UserError, match="is no image: give files"):
            find_source([array, wrong])


def test_unreadable_images_are_skipped(tmp_path, encoded):
    (tmp_path / "a.jpg").write_bytes(encoded((40, 30)))
    (tmp_path / "b.jpg").write_bytes(b"text")
    (tmp_path / "c.mp4").write_bytes(b"text")
    read = list(read_source(tmp_path))
    assert isinstance(read[0], Frame) and read[0].image.shape == (30, 40, 3) and read[0].number is None
    assert read[1:] == [
        Skipped(str(tmp_path / "b.jpg"), "not an image"),
        Skipped(str(tmp_path / "c.mp4"), "not a video"),
    ]


def test_videos(write_video):
    path = write_video("a.mp4", 5)
    frames = list(read_source(path))
    assert [(f.number, f.rate, f.name) for f in frames] == [(i, 10.0, str(path)) for i in range(5)]
    for number, frame in enumerate(frames):  # RGB
        assert np.abs(frame.image.mean((0, 1)) - [100 + 20 * number, 20 * number, 20 * number]).max() < 6
    assert len(list(read_source([path, path.parent], frames=2))) == 2  # each file once
    whole = write_video("a.mpg", 60, codec="PIM1", rate=25.0)  # its times are no times from the first frame
    assert [frame.number for frame in read_source(whole)] == [*range(60)]


def test_a_video_that_breaks_off_is_told(write_video):
    path = write_video("a.avi", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *frames, last = read_source(path)
    assert 5 < len(frames) < 55
    assert last == Skipped(str(path), f"ends after {len(frames)} frames, but its header announces about 60")


def test_a_video_opens_no_other_file(write_video, server, asked):
    """Playlists and images with the ending of a video, which FFmpeg would follow or read."""
    film, folder = write_video("film.mp4", 3), write_video("b.mp4", 3).parent
    lists = [f"ffconcat version 1.0\nfile {name}\n" for name in (film.name, f"{server}/a.mp4")]
    lists += [f"#EXTM3U\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n" for name in (film.name, f"{server}/a.ts")]
    for text in [*lists, "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"]:
        (folder / "b.mp4").write_text(text)
        assert list(read_source(folder / "b.mp4")) == [Skipped(str(folder / "b.mp4"), "not a video")]
    for name in ("x1.mp4", "x2.mp4"):
        Image.new("RGB", (64, 48)).save(folder / name, "PNG")
    assert list(read_source(folder / "x1.mp4")) == [Skipped(str(folder / "x1.mp4"), "not a video")]
    assert asked == []


@pytest.fixture
def asked():
    """The paths that the server was asked for."""
    return []


@pytest.fixture
def server(encoded, asked):
    """Address of a server: /a.jpg, /text, /large, /slow, /drip and 404."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = {"/a.jpg": encoded((40, 30)), "/text": b"text", "/large": b"0" * (1 << 21)}.get(self.path)
            self.send_response(200 if body or self.path in ("/slow", "/drip") else 404)
            self.end_headers()
            if self.path == "/slow":
                pause.wait(5)
            while self.path == "/drip" and not pause.wait(0.05):
                self.wfile.write(b"0")
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    pause, served = threading.Event(), ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    pause.set()
    served.shutdown()


def test_addresses(server, monkeypatch):
    (frame,) = read_source(f"{server}/a.jpg")
    assert frame.image.shape == (30, 40, 3) and frame.name == f"{server}/a.jpg"
    assert list(read_source(f"{server}/text")) == [Skipped(f"{server}/text", "not an image")]
    (missing,) = read_source(f"{server}/none.jpg")
    assert "404" in missing.reason
    with pytest.raises(UnreadableImage, match="over 1 MB"):
        fetch(f"{server}/large", limit=1 << 20)
    with pytest.raises(UnreadableImage, match="not there in 0.2 s"):
        fetch(f"{server}/slow", seconds=0.2)
    with pytest.raises(UnreadableImage, match="not there in 0.5 s"):  # though each byte comes soon
        fetch(f"{server}/drip", seconds=0.5)
    assert [s.reason[:17] for s in read_source(["http://[", "http://a b", "http://127.0.0.1:1/a"])] == [
        "cannot be fetched"
    ] * 3


def test_webcams(monkeypatch):
    class Camera:
        def __init__(self, number, _):
            self.left = 2 if number == 1 else 0

        def get(self, _):
            return 0.0

        def read(self):
            self.left -= 1
            return self.left >= 0, np.full((4, 5, 3), (1, 2, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    frames = list(read_source(1))
    assert [(f.name, f.number, f.rate, f.image[0, 0].tolist()) for f in frames] == [
        ("webcam:1", i, 25.0, [3, 2, 1]) for i in range(2)
    ]
    assert list(read_source("webcam:0")) == [Skipped("webcam:0", "no webcam there")]
