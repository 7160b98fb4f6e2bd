"""Compare an exported detector with the one in PyTorch, and measure the speed of both."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import transforms as T
from rich.progress import track
from rich.table import Table

from clim.data.images import ResizeShortestEdge
from clim.errors import UserError
from clim.sources import Frame, read_source

from ..drawing import ordered
from .graph import class_rows

RUNS = (0.5, 1), (0.75, 1), (1.0, 1), (1.0, 2)  # share of the size of the test, threads
SAME = 0.01  # px: two boxes with smaller differences are the same
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (N, 4), scores (N,), classes (N,)


class Difference(NamedTuple):
    """Between two lists of detections."""

    unequal: int  # detections that the other list lacks: no box of this class within SAME
    box: float  # px, the largest of the others
    score: float


def check(detector, path: Path, images: Sequence, *, dynamic_classes: bool, console) -> None:
    """Print the largest differences between the file and ``detector`` at three sizes, and images a second of both."""
    photos = [item.image for item in read_source(images, frames=1) if isinstance(item, Frame)]
    if not photos:
        raise UserError(f"--check: none of the {len(images)} files can be read, but the export is there: name images.")
    rows = class_rows(detector.model).numpy() if dynamic_classes else None
    names = "short side", "threads", "detections", "unequal", "box, px", "score", "PyTorch, images/s", "file, images/s"
    table, whole, threads_before = Table(*names, title=str(path)), detector.resize, torch.get_num_threads()
    for part, threads in RUNS:
        side, longest = (round(part * px) for px in (whole.short_edge_length[0], whole.max_size))
        detector.resize = ResizeShortestEdge([side] * 2, longest)
        torch.set_num_threads(threads)
        run, found, seconds = exported(path, rows, threads=threads), [], []
        progress = {"console": console, "transient": True, "disable": not console.is_terminal}
        for photo in track(photos, f"{side} px, {threads} threads", **progress):
            times = [time.perf_counter()]
            truth = in_pytorch(detector, photo)
            times.append(time.perf_counter())
            of_file = in_file(run, photo, detector.resize)
            times.append(time.perf_counter())
            found.append((len(truth[0]), *difference(of_file, truth)))
            seconds.append(np.diff(times))
        counts, unequal, *worst = zip(*found, strict=True)
        speed = (f"{1 / statistics.median(of):.2f}" for of in zip(*seconds, strict=True))
        numbers = side, threads, sum(counts), sum(unequal), *(f"{max(of):.1e}" for of in worst), *speed
        table.add_row(*map(str, numbers))
    detector.resize = whole
    torch.set_num_threads(threads_before)
    console.print(table)


def exported(path: Path, rows: np.ndarray | None, *, threads: int) -> Callable[[np.ndarray], Found]:
    """The file as a function of a resized RGB image; ``rows`` (K, D) are class embeddings."""
    if path.suffix == ".pt2":
        from .programs import load_programs

        programs = load_programs(path, trusted=True)  # written just now
        return lambda image: tuple(x.numpy() for x in programs(torch.tensor(image)))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {} if rows is None else {"class_embeddings": rows}
    return lambda image: tuple(session.run(["boxes", "scores", "classes"], {"image": image} | given))


def in_file(run: Callable[[np.ndarray], Found], image: np.ndarray, resize: T.Augmentation) -> Found:
    """Detections of the exported file in an RGB image (H, W, 3), in its own pixels."""
    resized = resize.get_transform(image).apply_image(image)
    boxes, *others = run(resized)
    height, width = np.divide(image.shape[:2], resized.shape[:2])
    return boxes * np.array([width, height, width, height], dtype=np.float32), *others


def in_pytorch(detector, image: np.ndarray) -> Found:
    """Detections of the :class:`clim.Detector`."""
    (found,) = detector.detect([ordered(image, detector.input_format)])
    return found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy()


def difference(found: Found, truth: Found) -> Difference:
    """Between detections, each with the nearest free one of its class; their order may differ where scores tie."""
    free, worst, matched = np.ones(len(truth[0]), dtype=bool), np.zeros(2), 0
    for box, score, label in zip(*found, strict=True):
        distances = np.abs(truth[0] - box).max(axis=1)
        distances[~(free & (truth[2] == label))] = np.inf
        if distances.size and distances.min() <= SAME:
            partner = distances.argmin()
            free[partner], matched = False, matched + 1
            worst = np.maximum(worst, [distances[partner], abs(truth[1][partner] - score)])
    return Difference(len(found[0]) + len(truth[0]) - 2 * matched, *worst.tolist())
