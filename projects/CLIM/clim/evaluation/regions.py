"""Zero-shot region classification: Top-1 and Top-5 accuracy of given regions, in percent.

Every region is scored against all classes of its set: things, then stuff. Shapes: R regions, K classes.

- **macro**: mean of the accuracies of the classes that have regions. The CLIM release reports it as macc1 and macc5
  for things and for stuff, with each class's accuracy rounded to float16.
- **micro**: accuracy over all regions. The paper does not say whether its tables show macro or micro.
- If there is stuff, things are also scored among things alone, e.g. 80 classes instead of 133: ``…_80way``.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from clim.data.loader import NO_REGION
from clim.data.region_classification import VARIANTS, build_region_loader
from clim.errors import UserError

from .base import ImageEvaluator

METRICS = {"Top1": 1, "Top5": 5}

logger = logging.getLogger(__name__)


class RegionClassificationEvaluator(ImageEvaluator):
    """Computes the accuracies of a registered region set.

    Results are ``{"regions": {"Top1_macro": …, "Top1_micro": …, "Top1_macro_things": …, "Top5_macro": …}}`` for
    boxes; figures of the other variants begin with ``masks.`` or ``crops.``. Groups of classes are all (no
    suffix), things and stuff if there is stuff, base and novel if the set has that split; nan without regions.
    """

    report_file, keys = "region_results.json", {"variants": "TEST.REGIONS"}
    columns = tuple(f"{metric}_{average}" for metric in METRICS for average in ("macro", "micro"))
    build_loader = staticmethod(build_region_loader)

    def __init__(
        self, dataset_name: str, *, variants: Sequence[str] = ("boxes",), indices: Sequence[int] | None = None, **base
    ):
        """``variants``: what the model scores; ``indices``: its indices of the set's classes, None: the same."""
        if not variants or set(variants) - set(VARIANTS):
            raise UserError(f"TEST.REGIONS is {list(variants)}: give a list of one or more of {', '.join(VARIANTS)}.")
        super().__init__(dataset_name, **base)
        metadata = MetadataCatalog.get(dataset_name)
        self._classes = [*metadata.thing_classes, *(metadata.get("stuff_classes") or ())]
        self._num_things = len(metadata.thing_classes)
        self._groups = {"": list(range(len(self._classes)))}
        if self._num_things < len(self._classes):
            self._groups |= {"_things": self._groups[""][: self._num_things]}
            self._groups |= {"_stuff": self._groups[""][self._num_things :]}
        for split in ("base", "novel"):
            if names := set(metadata.get(f"{split}_classes") or ()):
                self._groups[f"_{split}"] = [i for i, name in enumerate(self._classes) if name in names]
        self._variants, self._indices = tuple(variants), indices

    def process(self, inputs, outputs):
        """B records with ``image_id`` and ``gt_classes`` (R,), and B dicts with ``region_scores``: {variant: (R, K)}.

        Stores (1 + 2V, R) int64 of an image: its classes, then for each of V variants the rank of the true class among
        all classes and among things.
        """
        for record, output in zip(inputs, outputs, strict=True):
            classes = record["gt_classes"].cpu()
            rows = [classes]
            for variant in self._variants:
                scores = self._scores(output, variant, num_regions=len(classes))
                rows += [true_ranks(scores, classes), true_ranks(scores[:, : self._num_things], classes)]
            self.results[record["image_id"]] = torch.stack(rows).numpy()

    def _scores(self, output: Mapping, variant: str, *, num_regions: int) -> Tensor:
        scores = output.get("region_scores", {}).get(variant)
        if scores is not None and self._indices is not None:
            scores = scores[:, self._indices]
        expected = (num_regions, len(self._classes))
        if scores is None or scores.shape != expected:
            given = "none" if scores is None else tuple(scores.shape)
            raise UserError(
                f"'{self.name}' needs scores {expected} of regions x classes for {variant}, but the model gives "
                f"{given}: change DATASETS.TEST, TEST.REGIONS or the model."
            )
        return scores.detach().float().cpu()

    def score(self, results, skipped):
        nothing = np.zeros((1 + 2 * len(self._variants), 0), np.int64)
        classes, *ranks = np.concatenate([nothing, *results.values()], axis=1)
        unreadable = [list(image) for image in skipped if image.reason != NO_REGION]
        empty = len(skipped) - len(unreadable)
        details = {
            "variants": self._variants, "num_pictures": len(results), "num_regions": len(classes),
            "num_pictures_without_regions": empty, "unreadable": unreadable,
        }  # fmt: skip
        others = f"{empty} images have none, {len(unreadable)} could not be read"
        logger.info(f"'{self.name}': {len(classes)} regions on {len(results)} images; {others}")
        if not len(classes):
            logger.warning(f"'{self.name}' has no region to classify, so all figures are nan: {others}")
        counts, summary = np.bincount(classes, minlength=len(self._classes)).tolist(), OrderedDict()
        per_class = [
            {"class": name, "kind": "thing" if i < self._num_things else "stuff", "num_regions": counts[i]}
            for i, name in enumerate(self._classes)
        ]
        for variant, among_all, among_things in zip(self._variants, ranks[::2], ranks[1::2], strict=True):
            prefix = "" if variant == "boxes" else f"{variant}."
            for metric, top in METRICS.items():
                accuracies = class_accuracies(among_all < top, classes, num_classes=len(self._classes))
                for row, accuracy in zip(per_class, accuracies.tolist(), strict=True):
                    row[prefix + metric] = accuracy
                groups = {group: (among_all, members) for group, members in self._groups.items()}
                if "_things" in groups:
                    groups[f"_{self._num_things}way"] = (among_things, self._groups["_things"])
                for group, (places, members) in groups.items():
                    for average, value in averages(places < top, classes, members=members).items():
                        summary[f"{prefix}{metric}_{average}{group}"] = value
        return details, {"regions": summary}, per_class


def true_ranks(scores: Tensor, classes: Tensor) -> Tensor:
    """(R,) int64 rank of the true class among (R, K) ``scores``; 0 is the highest.

    Of equal scores, the lower class is first. A true class that is not among the K, or whose score is nan, has rank K.
    """
    num_classes = scores.shape[1]
    known = classes < num_classes
    own = scores.gather(1, classes.clamp(max=num_classes - 1)[:, None])
    lower = torch.arange(num_classes) < classes[:, None]
    ranks = ((scores > own) | ((scores == own) & lower)).sum(dim=1)
    return ranks.masked_fill(~known | own[:, 0].isnan(), num_classes)


def class_accuracies(correct: np.ndarray, classes: np.ndarray, *, num_classes: int) -> np.ndarray:
    """(K,) percent of each class's regions that are ``correct`` (R,) bool; nan for a class without regions."""
    regions = np.bincount(classes, minlength=num_classes)
    hits = np.bincount(classes, weights=correct, minlength=num_classes)
    return np.divide(100 * hits, regions, out=np.full(num_classes, np.nan), where=regions > 0)


def averages(correct: np.ndarray, classes: np.ndarray, *, members: Sequence[int]) -> dict[str, float]:
    """{"macro": mean over the classes in ``members`` that have regions, "micro": mean over their regions}."""
    inside = np.isin(classes, members)
    if not inside.any():
        return {"macro": math.nan, "micro": math.nan}
    correct, classes = correct[inside], classes[inside]
    by_class = class_accuracies(correct, classes, num_classes=max(members) + 1)
    return {"macro": float(np.nanmean(by_class)), "micro": float(100 * correct.mean())}
