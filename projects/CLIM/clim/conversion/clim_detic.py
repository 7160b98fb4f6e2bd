"""CLIM's Detic detectors on OV-COCO, and the base stage that they start from (detic §2, §5)."""

from . import mmdet_c4
from .kind import Kind, Row
from .tensors import as_scalar

# The captions-only detector has no bias for tags, the base stage neither.
BIASES = {
    "roi_head.detic_caption.bce_bias": Row("method.bias.caption", as_scalar, optional=True),
    "roi_head.detic_tags.bce_bias": Row("method.bias.tag", as_scalar, optional=True),
}

CLIM_DETIC = Kind(
    name="clim-detic",
    what="CLIM's Detic on R50-C4 (MMDetection)",
    arguments=f"--eval-only --config-file configs/Detic_CLIM_C4.yaml {mmdet_c4.OWN_CLASSES}",
    fits=lambda state: mmdet_c4.is_c4(state) and not mmdet_c4.classifies_by_words(state),
    table=mmdet_c4.detector_table() | BIASES,
    left_out=mmdet_c4.LEFT_OUT | {"roi_head.detic_tags.tag_embeddings": "the classes' embeddings once more"},
)
