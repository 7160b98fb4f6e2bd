"""Inputs of the benchmark: settings, and photos from a folder or synthetic ones of COCO's size and bytes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import torch
from detectron2.structures import BoxMode
from tqdm import tqdm

from clim.data.images import UnreadableImage, read_image
from clim.errors import UserError


@dataclass(frozen=True)
class Settings:
    """The user's choices. Every process gets them."""

    repeats: int
    canvases: int
    threads: int
    device: str
    config_file: str
    scale: float
    folder: str  # scratch: synthetic photos, caption cache, logs
    overrides: tuple[str, ...]
    evaluated: tuple[int, int]  # images of the lvis section: of the comparison, and of CLIM alone
    pairs: tuple[int, ...]  # sizes of the sets that section shards measures

    def start(self) -> Callable[[], None]:
        """Limit the threads of this process. Returns the function that waits for the device."""
        torch.set_num_threads(self.threads)
        cv2.setNumThreads(self.threads)
        return torch.cuda.synchronize if self.on_gpu else lambda: None

    def clock(self) -> float:
        """Seconds that stages are measured in: of the CPU, or what has passed when the GPU is ready."""
        if not self.on_gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def seconds(self) -> str:
        """The clock of a run that gives rates and ratios."""
        return "wall" if self.on_gpu else "cpu"


def synthetic_photos(folder: Path, *, count: int) -> list[Path]:
    """``count`` 640x480 JPEGs with the 1/f spectrum of photographs and COCO's bytes (about 160 kB each)."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = 480, 640
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    paths = []
    for i in tqdm(range(count), desc="synthetic photos", unit="photo"):
        rng = np.random.default_rng(i)
        noise = np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency
        light, *colour = np.fft.irfft2(noise, s=(height, width))
        photo = np.stack([light + 0.3 * c for c in (colour[0], colour[1], -colour[0])], axis=-1)
        photo = 127 + 45 * (photo - photo.mean()) / photo.std()
        paths.append(folder / f"{i:06d}.jpg")
        PIL.Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def records_of(paths: Sequence[Path]) -> list[dict]:
    """Records for boxes and captions alike: 7 boxes, 5 captions of 10 words and 3 tags, as COCO's mean."""
    words = "man dog street red small table near holding two plate field sitting bus window".split()
    records = []
    for i, path in enumerate(paths):
        rng = np.random.default_rng([1, i])
        try:
            _, height, width = read_image(path)
        except UnreadableImage as error:
            raise UserError(f"--images: {error}. Remove this image or name another folder.") from error
        extent = rng.uniform(0.05, 0.6, (7, 2)) * (width, height)
        corner = rng.uniform(0, 1, (7, 2)) * ((width, height) - extent)
        records.append(
            {
                "file_name": str(path),
                "height": height,
                "width": width,
                "image_id": i,
                "annotations": [
                    {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": int(c), "iscrowd": 0}
                    for box, c in zip(np.hstack([corner, extent]).tolist(), rng.integers(0, 48, 7), strict=True)
                ],
                "captions": [f"{i} {k} " + " ".join(rng.choice(words, 8)) for k in range(5)],
                "tags": rng.choice(48, 3, replace=False).tolist(),
            }
        )
    return records


def find_photos(folder: str, *, count: int) -> list[Path]:
    """``count`` images of ``folder``, spread over its sorted list."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise UserError(f"--images {folder}: there is no .jpg or .png in it.")
    return paths[:: math.ceil(len(paths) / count)]
