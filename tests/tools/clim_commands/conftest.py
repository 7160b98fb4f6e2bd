"""A detector for tests of ``clim serve``."""

from pathlib import Path

import pytest
import torch

from clim.detector import Detector
from clim.engine import load_config

CONFIG = str(Path(__file__).parents[3] / "configs" / "mini" / "detic_clim.yaml")
TINY = ["MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "96", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "3"]


@pytest.fixture(scope="module")
def detector(tiny_mini, hash_tower):
    """A random detector whose scores lie around .5; every text has its own embedding."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
        detector = Detector(load_config(CONFIG, TINY))
    torch.nn.init.constant_(detector.model.roi_heads.box_predictor.cls_score.cls_bias, 0.0)
    detector.model.text_encoder = hash_tower(384)
    return detector
