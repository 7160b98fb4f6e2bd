"""Batches of images to test on. An image that gives no input is reported and left out; the others go on."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import SizeMismatchError

NO_REGION = "no region left"  # why a readable image is skipped: it shows nothing that is to be classified


class Skipped(NamedTuple):
    """What a mapper returns for an image that gives no input."""

    file_name: str
    reason: str


class SkippingLoader:
    """The batches of ``loader`` without skipped images; ``on_skip`` is called with each :class:`Skipped`."""

    def __init__(self, loader, *, on_skip: Callable[[Skipped], None]):
        self.loader, self.on_skip = loader, on_skip

    def __len__(self) -> int:
        """Number of batches, including those that turn out to be empty."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            for sample in batch:
                if isinstance(sample, Skipped):
                    self.on_skip(sample)
            if samples := [sample for sample in batch if not isinstance(sample, Skipped)]:
                yield samples


class DetectionTestMapper:
    """Detectron2's test mapper; gives :class:`Skipped` if an image is damaged or has another size than its record."""

    def __init__(self, cfg):
        self.mapper = DatasetMapper(cfg, is_train=False)

    def __call__(self, record: dict) -> dict | Skipped:
        try:
            return self.mapper(record)
        except (OSError, SyntaxError, SizeMismatchError) as error:  # PIL raises all of the first two
            return Skipped(record["file_name"], " ".join(str(error).split()))


def build_detection_loader(cfg, name: str, *, on_skip: Callable[[Skipped], None]) -> SkippingLoader:
    """This process's share of data set ``name`` as Detectron2's test inputs, one image a batch."""
    loader = build_detection_test_loader(cfg, name, mapper=DetectionTestMapper(cfg))
    return SkippingLoader(loader, on_skip=on_skip)
