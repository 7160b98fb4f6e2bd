"""ovdet's BARON with captions on R50-C4, and the base stage with the same head (baron §9)."""

from . import mmdet_c4
from .kind import Kind, with_bias

POSITIONS = {
    f"roi_head.baron_caption.positional_embed.pos_proj.{i}": f"method.positional_embed.{i}" for i in range(3)
}

OVDET_BARON = Kind(
    name="ovdet-baron",
    what="ovdet's BARON on R50-C4 (MMDetection)",
    arguments=f"--eval-only --config-file configs/BARON_C4_joint.yaml {mmdet_c4.OWN_CLASSES}",
    fits=lambda state: mmdet_c4.is_c4(state) and mmdet_c4.classifies_by_words(state),
    # The base stage has no positional embedding.
    table=mmdet_c4.detector_table() | with_bias(POSITIONS, optional=True),
    left_out=mmdet_c4.LEFT_OUT,
)
