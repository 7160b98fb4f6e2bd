"""The base of all evaluators: it gathers one result for each image, and writes tables and a json report."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from clim.data.loader import NO_REGION, Skipped, SkippingLoader
from clim.files import nan_to_none, write_json

logger = logging.getLogger(__name__)


class ImageEvaluator(DatasetEvaluator):
    """Keeps one result for each image and scores all results in the main process.

    A subclass stores ``self.results[image_id]`` in :meth:`process` and computes figures in :meth:`score`. An image
    that a sampler repeats counts once. ``output_dir`` is the folder of the files; None: it writes nothing.
    ``distributed``: gather the results of all processes.
    """

    task: str  # key of the figures in the result of evaluate()
    columns: tuple[str, ...]  # columns of the summary's table; the other parts of a figure's name are its row
    report_file: str  # name of the report in ``output_dir``
    build_loader: Callable[..., SkippingLoader]  # (cfg, data set, on_skip=…) → batches for the model

    def __init__(self, dataset_name: str, *, output_dir: str | os.PathLike | None = None, distributed: bool = True):
        self.name = dataset_name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.distributed = distributed
        self.reset()

    def reset(self):
        self.results: dict[int, object] = {}
        self.skipped: list[Skipped] = []

    def skip(self, image: Skipped):
        """Store an image that does not reach the model. Warns if it could not be read."""
        self.skipped.append(image)
        if image.reason != NO_REGION:
            logger.warning("Image left out of the evaluation on '%s': %s (%s)", self.name, *image)

    def score(self, results: dict, skipped: list[Skipped]) -> tuple[dict, OrderedDict, list[dict]]:
        """More entries of the report, {figure: value}, and one row {column: value} for each class.

        ``results`` are {image id: result} and ``skipped`` the skipped images of all processes, both sorted.
        """
        raise NotImplementedError

    def evaluate(self) -> OrderedDict | dict:
        """{task: {figure: value}} of all images, also logged and written; {} in all processes but the main one."""
        parts = [(self.results, self.skipped)]
        if self.distributed:
            comm.synchronize()
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return {}
        results = {image_id: result for part, _ in parts for image_id, result in part.items()}
        skipped = sorted({image for _, part in parts for image in part})
        details, summary, per_class = self.score(dict(sorted(results.items())), skipped)
        logger.info(f"Results on '{self.name}':\n{summary_table(summary, self.columns)}")
        logger.info(f"Results by class on '{self.name}':\n{table(per_class, headers='keys')}")
        report = {"dataset": self.name, **details, "summary": nan_to_none(summary)}
        self.write(self.report_file, report | {"per_class": [nan_to_none(row) for row in per_class]})
        return OrderedDict({self.task: summary})

    def write(self, file_name: str, content):
        if self.output_dir is not None:
            write_json(self.output_dir / file_name, content)


def summary_table(summary: Mapping[str, float], columns: Sequence[str]) -> str:
    """Table of {prefix + column + group: value}, a row for each prefix and group: "all", "novel", "crops things"."""
    rows = []
    for key in summary:
        prefix, found, group = key.partition(columns[0])
        if found:
            label = f"{prefix.strip('.')} {group.strip('_')}".strip() or "all"
            rows.append([label, *(summary[f"{prefix}{column}{group}"] for column in columns)])
    return table(rows, headers=["group", *columns])


def table(rows: Sequence, headers) -> str:
    """Text table of rows; figures have two decimals."""
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".2f")
