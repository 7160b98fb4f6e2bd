"""Pictures to detect in, one a batch; one that cannot be read is told and left out, the others go on."""

import logging

from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import SizeMismatchError

from .skipping_loader import Skipped, SkippingLoader

logger = logging.getLogger(__name__)


class ReadableMapper:
    """Detectron2's mapper for tests, or :class:`Skipped` for a picture that is damaged or not the one of its record."""

    def __init__(self, cfg):
        self.mapper = DatasetMapper(cfg, is_train=False)

    def __call__(self, record: dict) -> dict | Skipped:
        try:
            return self.mapper(record)
        except (OSError, SyntaxError, SizeMismatchError) as error:  # PIL raises all of the first two
            return Skipped(record["file_name"], " ".join(str(error).split()))


def detection_test_loader(cfg, name: str) -> SkippingLoader:
    """This process's share of data set ``name``, in Detectron2's format."""
    return SkippingLoader(build_detection_test_loader(cfg, name, mapper=ReadableMapper(cfg)), on_skip=tell)


def tell(skipped: Skipped) -> None:
    """Warn of a picture that gives no detections."""
    logger.warning("Picture left out of the evaluation, where its objects count as missed: %s (%s)", *skipped)
