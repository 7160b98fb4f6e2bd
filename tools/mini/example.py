"""The data of docs/worked_example.md, as somebody else might have them: a toy shop's scenes, photos and a video.

Layout of the folder::

    images/train/ images/val/ labels/train/ labels/val/   scenes and their boxes in YOLO's format
    photos/ captions.txt                                  one or two large toys each, lines FILE<TAB>CAPTION
    shop.mp4                                              toys that move
    data.yaml                                             as Ultralytics writes it, with ``novel`` and ``captions``

Three of the six toys have boxes. The others lie in the scenes too, but have boxes in ``val`` alone. None of the six is
a concept of the mini benchmark. All is a function of the seed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from clim.errors import UserError
from mini.concepts import Concept, web_captions
from mini.generate import draw_all, encode_jpeg
from mini.images import CANVAS, PAIR_SIDES, LabelledImage, draw, drawing, plain_background, transform

NOVEL = True
TOYS = (
    Concept("robot", "1F916", "robots", ("toy robot",)),
    Concept("teddy bear", "1F9F8", "teddy bears", ("teddy",)),
    Concept("balloon", "1F388", "balloons", ("red balloon",)),
    Concept("rocket", "1F680", "rockets", ("space rocket",), NOVEL),
    Concept("snowman", "26C4", "snowmen", ("little snowman",), NOVEL),
    Concept("crown", "1F451", "crowns", ("golden crown",), NOVEL),
)
BOXED = [i for i, toy in enumerate(TOYS) if not toy.novel]
SIZES = {"train": 120, "val": 60, "photos": 300}
SECONDS, RATE = 4, 12  # of the video; frames a second
SCENE_SIDES = (36, 110)  # px
IMAGE_SIDES = (256, 320, 384)  # px; scenes are drawn with CANVAS px and enlarged
OTHER_SHARE = 0.3  # of the toys in a scene for training have no box
NOTE = "# Made by tools/make_example.py. OpenMoji's drawings are CC BY-SA 4.0 (openmoji.org)."


def shelf(rng: np.random.Generator) -> np.ndarray:
    """(256, 256, 3) uint8: a shop's shelves, light boards on one colour or a gradient."""
    image = plain_background(rng)
    for y in range(int(rng.integers(40, 80)), CANVAS, int(rng.integers(60, 100))):
        image[y : y + 8] = rng.integers(120, 240, size=3)
        image[y + 8 : y + 11] //= 2
    return image


def scene(seed: int, split: str, index: int) -> LabelledImage:
    """One to five toys on shelves; for training, at least one has a box."""
    rng = np.random.default_rng((seed, list(SIZES).index(split), index))
    toys = rng.integers(len(TOYS), size=rng.integers(1, 6))
    if split == "train":
        others = [i for i in range(len(TOYS)) if i not in BOXED]
        chosen = rng.random(len(toys)) < OTHER_SHARE
        chosen[0] = False
        toys = np.where(chosen, rng.choice(others, len(toys)), rng.choice(BOXED, len(toys)))
    return draw(shelf(rng), toys, rng, sides=SCENE_SIDES, known=TOYS)


def yolo_lines(drawn: LabelledImage, classes: Sequence[int]) -> list[str]:
    """Lines "class x y width height" of the toys among ``classes``: centre and size in parts of the image."""
    boxes = drawn.boxes() / CANVAS
    boxes[:, :2] += boxes[:, 2:] / 2
    rows = zip(drawn.concepts, boxes.tolist(), strict=True)
    return [" ".join([str(c), *(f"{value:.6f}" for value in box)]) for c, box in rows if c in classes]


def _write_scene(task: tuple[str, int], *, folder: Path, seed: int) -> None:
    split, index = task
    drawn = scene(seed, split, index)
    side = IMAGE_SIDES[index % len(IMAGE_SIDES)]
    image = cv2.resize(drawn.image, (side, side), interpolation=cv2.INTER_CUBIC)
    (folder / "images" / split / f"{index:04d}.jpg").write_bytes(encode_jpeg(image))
    lines = yolo_lines(drawn, BOXED if split == "train" else range(len(TOYS)))
    (folder / "labels" / split / f"{index:04d}.txt").write_text("".join(f"{line}\n" for line in lines))


def _write_photo(index: int, *, folder: Path, seed: int) -> list[str]:
    """Write a photo. Returns its lines of captions.txt."""
    rng = np.random.default_rng((seed, list(SIZES).index("photos"), index))
    toys = rng.integers(len(TOYS), size=rng.integers(1, 3))
    background = shelf(rng) if rng.random() < 0.5 else plain_background(rng)
    drawn = draw(background, toys, rng, sides=PAIR_SIDES[len(toys)], known=TOYS)
    name = f"{index:04d}.jpg"
    (folder / "photos" / name).write_bytes(encode_jpeg(drawn.image))
    return [f"{name}\t{caption}\n" for caption in web_captions(drawn.concepts, rng, known=TOYS)[:2]]


def frames(seed: int, *, count: int) -> list[np.ndarray]:
    """``count`` frames (256, 256, 3) uint8 BGR of a video: three rows of two toys move from side to side."""
    rng = np.random.default_rng((seed, len(SIZES)))
    background, pasted, row = shelf(rng), [], CANVAS // 3
    for i, toy in enumerate(TOYS):
        patch = transform(drawing(toy.code), side=rng.uniform(55, 75), degrees=0, flip=False).astype(np.float32)
        left, top = i % 2 * CANVAS // 2, i // 2 * row + (row - patch.shape[0]) / 2
        ends = np.array([[left, top], [left + CANVAS // 2 - patch.shape[1], top]])
        pasted.append((patch, *(ends if i // 2 % 2 else ends[::-1])))
    images = []
    for part in np.linspace(0, 1, count):
        image = background.astype(np.float32)
        for patch, start, end in pasted:
            x, y = np.rint(start + part * (end - start)).astype(int)
            area = image[y : y + patch.shape[0], x : x + patch.shape[1]]
            area[:] = patch[..., :3] + (1 - patch[..., 3:] / 255) * area
        images.append(np.rint(image).astype(np.uint8))
    return images


def write_video(path: Path, images: Sequence[np.ndarray]) -> None:
    """Write BGR images as H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))


def data_yaml() -> str:
    """The content of data.yaml."""
    names = "".join(f"  {i}: {toy.name}\n" for i, toy in enumerate(TOYS))
    novel = ", ".join(toy.name for toy in TOYS if toy.novel)
    return (
        f"{NOTE}\ntrain: images/train\nval: images/val\nnames:\n{names}"
        f"# What CLIM adds: words without boxes, and images with captions that name them.\nnovel: [{novel}]\n"
        "captions: {images: photos, captions: captions.txt}\n"
    )


def build_example(folder: Path, *, seed: int = 0, workers: int = 2, sizes: dict[str, int] = SIZES) -> None:
    """Write the files above to ``folder``, which must be new or empty. UserError if it is not."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder} is not empty: name a new folder.")
    for name in ("images/train", "images/val", "labels/train", "labels/val", "photos"):
        (folder / name).mkdir(parents=True)
    tasks = [(split, index) for split in ("train", "val") for index in range(sizes[split])]
    list(draw_all(tasks, partial(_write_scene, folder=folder, seed=seed), workers=workers, what="scenes"))
    write = partial(_write_photo, folder=folder, seed=seed)
    lines = draw_all(range(sizes["photos"]), write, workers=workers, what="photos")
    (folder / "captions.txt").write_text("".join(line for photo in lines for line in photo))
    write_video(folder / "shop.mp4", frames(seed, count=sizes.get("frames", SECONDS * RATE)))
    (folder / "data.yaml").write_text(data_yaml())
