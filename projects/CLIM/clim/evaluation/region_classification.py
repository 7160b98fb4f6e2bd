"""Zero-shot region classification: Top-1 and Top-5 accuracy of given regions, in percent.

Every region is scored against all classes of its set: things, then stuff. R: regions, K: classes.

- **macro**: mean over classes of each class's accuracy, classes without regions left out: what the CLIM
  release reports as macc1 and macc5 for things and stuff apart (it rounds each class's accuracy to float16,
  which is not imitated: under 0.03 points a class).
- **micro**: part of all regions. The paper does not say which of the two its tables show.
- where there is stuff, also things among the things alone, e.g. 80 classes instead of 133: ``…_80way``.
"""

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from clim.data.regions import NO_REGION, VARIANTS
from clim.data.skipping_loader import Skipped
from clim.errors import UserError
from clim.files import nan_to_none, write_json

METRICS = {"Top1": 1, "Top5": 5}
RESULTS_FILE = "region_results.json"

logger = logging.getLogger(__name__)


class RegionClassificationEvaluator(DatasetEvaluator):
    """Scores region scores of a registered region set.

    Results are ``{"regions": {"Top1_macro": …, "Top1_micro": …, "Top1_macro_things": …, "Top5_macro": …}}`` for
    boxes; figures of the other variants begin with ``masks.`` or ``crops.``. Groups of classes are all (no
    suffix), things and stuff where there is stuff, base and novel where the set has that split; nan without
    regions.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | os.PathLike | None = None,
        distributed: bool = True,
        variants: Sequence[str] = ("boxes",),
    ):
        """
        Args:
            dataset_name: a data set with ``thing_classes``, and ``stuff_classes`` where it has stuff: K names.
            output_dir: for ``region_results.json`` (summary and per_class). None: nothing is written.
            distributed: gather the regions of all processes; only the main one scores, others return {}.
            variants: of VARIANTS, those that the model gives scores for.

        Raises:
            UserError: metadata missing, unknown variants or none.
        """
        if not variants or set(variants) - set(VARIANTS):
            raise UserError(
                f"TEST.REGIONS is {list(variants)}: give one or more of {', '.join(VARIANTS)} as a list"
            )
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("thing_classes") is None:
            raise UserError(f"data set '{dataset_name}' is registered without metadata thing_classes")
        self._name = dataset_name
        self._classes = region_classes(metadata)
        self._num_things = len(metadata.thing_classes)
        self._groups = _groups(metadata, self._classes, self._num_things)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._distributed = distributed
        self._variants = tuple(variants)
        self.reset()

    def reset(self):
        """Forget all regions and skipped pictures."""
        self._ranks: dict[int, dict[str, np.ndarray]] = {}
        self._skipped: list[Skipped] = []

    def skip(self, picture: Skipped):
        """Remember a picture that never reached the model, for the report."""
        self._skipped.append(picture)

    def process(self, inputs, outputs):
        """
        Args:
            inputs: B records with ``image_id`` and ``gt_classes`` (R,).
            outputs: B dicts with ``region_scores``: {variant: (R, K), higher is likelier}.
        """
        for record, output in zip(inputs, outputs, strict=True):
            classes = record["gt_classes"].cpu()
            ranks = {"classes": classes.numpy()}
            for variant in self._variants:
                scores = self._scores(output, variant, num_regions=len(classes))
                ranks[variant] = true_ranks(scores, classes).numpy()
                if self._num_things < len(self._classes):
                    things = scores[:, : self._num_things]
                    ranks[f"{variant} among things"] = true_ranks(things, classes).numpy()
            self._ranks[record["image_id"]] = ranks

    def _scores(self, output: Mapping, variant: str, *, num_regions: int) -> Tensor:
        scores = output.get("region_scores", {}).get(variant)
        if scores is None:
            raise UserError(
                f"'{self._name}' is a set of regions, but the model gives no scores for their {variant}: evaluate "
                "a model of images and texts, or change DATASETS.TEST or TEST.REGIONS"
            )
        if scores.shape != (num_regions, len(self._classes)):
            raise UserError(
                f"the model scores {tuple(scores.shape)} regions x classes, but '{self._name}' has "
                f"{(num_regions, len(self._classes))}: set the model's vocabulary to the data set's classes"
            )
        return scores.detach().float().cpu()

    def evaluate(self) -> OrderedDict | dict:
        """Score what was processed, log two tables, write the file; {} on all but the main process."""
        parts = [(self._ranks, self._skipped)]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return {}
        by_image = {image_id: ranks for part, _ in parts for image_id, ranks in part.items()}
        pictures = [by_image[image_id] for image_id in sorted(by_image)]
        columns = {
            key: np.concatenate([np.zeros(0, np.int64), *(ranks[key] for ranks in pictures)])
            for key in ("classes", *(k for ranks in pictures[:1] for k in ranks if k != "classes"))
        }
        skipped = sorted({picture for _, part in parts for picture in part})
        summary, per_class = self._score(columns)
        counts = self._report_counts(len(pictures), len(columns["classes"]), skipped)
        logger.info(f"Region classification on '{self._name}':\n{summary_table(summary)}")
        logger.info(f"Accuracy by class on '{self._name}':\n{class_table(per_class)}")
        if self._output_dir is not None:
            report = {
                "dataset": self._name,
                "variants": self._variants,
                **counts,
                "summary": nan_to_none(summary),
                "per_class": [nan_to_none(row) for row in per_class],
            }
            write_json(self._output_dir / RESULTS_FILE, report)
        return OrderedDict(regions=summary)

    def _report_counts(self, num_pictures: int, num_regions: int, skipped: Sequence[Skipped]) -> dict:
        unreadable = [picture for picture in skipped if picture.reason != NO_REGION]
        empty = len(skipped) - len(unreadable)
        logger.info(f"'{self._name}': {num_regions} regions on {num_pictures} pictures, {empty} without one")
        if unreadable:
            file_name, reason = unreadable[0]
            logger.warning(f"{len(unreadable)} pictures were left out, the first {file_name} ({reason})")
        return {
            "num_pictures": num_pictures,
            "num_regions": num_regions,
            "num_pictures_without_regions": empty,
            "unreadable": [list(picture) for picture in unreadable],
        }

    def _score(self, columns: Mapping[str, np.ndarray]) -> tuple[OrderedDict, list[dict]]:
        classes, num_classes = columns["classes"], len(self._classes)
        summary = OrderedDict()
        per_class = [
            {
                "class": name,
                "kind": "thing" if i < self._num_things else "stuff",
                "num_regions": int((classes == i).sum()),
            }
            for i, name in enumerate(self._classes)
        ]
        nothing = np.zeros(0, np.int64)
        for variant in self._variants:
            prefix = "" if variant == "boxes" else f"{variant}."
            ranks, among_things = (columns.get(key, nothing) for key in (variant, f"{variant} among things"))
            for metric, top in METRICS.items():
                accuracies = class_accuracies(ranks < top, classes, num_classes=num_classes)
                for row, accuracy in zip(per_class, accuracies.tolist(), strict=True):
                    row[prefix + metric] = accuracy
                for group, members in self._groups.items():
                    for average, value in averages(ranks < top, classes, members=members).items():
                        summary[f"{prefix}{metric}_{average}{group}"] = value
                if "_things" in self._groups:
                    things = self._groups["_things"]
                    for average, value in averages(among_things < top, classes, members=things).items():
                        summary[f"{prefix}{metric}_{average}_{self._num_things}way"] = value
        return summary, per_class


def region_classes(metadata) -> list[str]:
    """Names of a region set's K classes in the order of scores: things, then stuff."""
    return [*metadata.thing_classes, *(metadata.get("stuff_classes") or ())]


def true_ranks(scores: Tensor, classes: Tensor) -> Tensor:
    """(R,) int64 place of the true class among (R, K) ``scores``, 0: the highest.

    Of equal scores the lower class comes first. A true class outside the K, or whose score is not a number,
    is behind all: K.
    """
    num_classes = scores.shape[1]
    known = classes < num_classes
    own = scores.gather(1, classes.clamp(max=num_classes - 1)[:, None])
    lower = torch.arange(num_classes) < classes[:, None]
    ranks = ((scores > own) | ((scores == own) & lower)).sum(dim=1)
    return ranks.masked_fill(~known | own[:, 0].isnan(), num_classes)


def class_accuracies(correct: np.ndarray, classes: np.ndarray, *, num_classes: int) -> np.ndarray:
    """(K,) percent of each class's regions that are ``correct`` (R,) bool; nan for classes without any."""
    regions = np.bincount(classes, minlength=num_classes)
    hits = np.bincount(classes, weights=correct, minlength=num_classes)
    return np.divide(100 * hits, regions, out=np.full(num_classes, np.nan), where=regions > 0)


def averages(correct: np.ndarray, classes: np.ndarray, *, members: Sequence[int]) -> dict[str, float]:
    """{"macro": mean over the classes of ``members`` that have regions, "micro": over their regions}."""
    inside = np.isin(classes, members)
    if not inside.any():
        return {"macro": math.nan, "micro": math.nan}
    correct, classes = correct[inside], classes[inside]
    by_class = class_accuracies(correct, classes, num_classes=max(members) + 1)
    return {"macro": float(np.nanmean(by_class)), "micro": float(100 * correct.mean())}


def summary_table(summary: Mapping[str, float]) -> str:
    """Variants and groups as rows, the four averages as columns."""
    columns = [f"{metric}_{average}" for metric in METRICS for average in ("macro", "micro")]
    rows = []
    for key in summary:
        prefix, found, group = key.partition(columns[0])
        if found:
            values = [summary[f"{prefix}{column}{group}"] for column in columns]
            rows.append([prefix.rstrip(".") or "boxes", group.lstrip("_") or "all", *values])
    return tabulate(rows, headers=["regions", "classes", *columns], tablefmt="pipe", floatfmt=".2f")


def class_table(per_class: Iterable[Mapping]) -> str:
    """One row a class; nan where it has no region."""
    return tabulate([dict(row) for row in per_class], headers="keys", tablefmt="pipe", floatfmt=".2f")


def _groups(metadata, classes: Sequence[str], num_things: int) -> dict[str, list[int]]:
    """{suffix: class indices}."""
    groups = {"": list(range(len(classes)))}
    if num_things < len(classes):
        groups |= {"_things": groups[""][:num_things], "_stuff": groups[""][num_things:]}
    for split in ("base", "novel"):
        if names := metadata.get(f"{split}_classes"):
            groups[f"_{split}"] = [i for i, name in enumerate(classes) if name in set(names)]
    return groups
