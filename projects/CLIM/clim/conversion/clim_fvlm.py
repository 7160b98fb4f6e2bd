"""CLIM's F-VLM detector on ViT-B/16, OV-COCO (clip_fvlm §4, §7).

One anchor size a level, so the order of ratios is the order of anchors, as in Detectron2; fully connected layers read
maps as (C, 7, 7), as Detectron2's do.
"""

from .kind import Kind, Row, State, Table, with_bias
from .resnet import STATISTICS
from .tensors import as_scalar, text_matrix

BLOCKS = 12  # of ViT-B
HEAD = "roi_head.bbox_head."
PREDICTOR = "roi_heads.box_predictor."
PYRAMID = "backbone.pyramid."
HEADS = {
    "rpn_head.rpn_conv.0.conv": "proposal_generator.rpn_head.conv.conv0",
    "rpn_head.rpn_conv.1.conv": "proposal_generator.rpn_head.conv.conv1",
    "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    f"{HEAD}shared_fcs.0": "roi_heads.box_head.fc1",
    f"{HEAD}shared_fcs.1": "roi_heads.box_head.fc2",
    f"{HEAD}cls_fcs.0": f"{PREDICTOR}cls_score.hidden",
    f"{HEAD}fc_cls": f"{PREDICTOR}cls_score.linear",
    f"{HEAD}bg_embedding": f"{PREDICTOR}cls_score.background",
    f"{HEAD}reg_fcs.0": f"{PREDICTOR}bbox_pred.0",
    f"{HEAD}fc_reg": f"{PREDICTOR}bbox_pred.2",
}


def is_fvlm(state: State) -> bool:
    """Whether a file is of a pyramid on a frozen CLIP ViT; those on OV-LVIS have another neck and masks."""
    return "backbone.visual.class_embedding" in state and "neck.lateral_convs.0.conv.weight" in state


def encoder_table() -> Table:
    """CLIP's ViT, which the file holds whole: names below ``visual`` are open_clip's in both."""
    block = [
        f"{layer}.{name}"
        for layer in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        for name in ("weight", "bias")
    ] + ["attn.in_proj_weight", "attn.in_proj_bias"]
    names = ["class_embedding", "positional_embedding", "proj", "conv1.weight"]
    names += [f"{layer}.{name}" for layer in ("ln_pre", "ln_post") for name in ("weight", "bias")]
    names += [f"transformer.resblocks.{i}.{name}" for i in range(BLOCKS) for name in block]
    return {f"backbone.visual.{name}": Row(f"backbone.encoder.visual.{name}") for name in names}


def pyramid_table() -> Table:
    """Deconvolutions to strides 4 and 8, and the FPN."""
    rescale = f"{PYRAMID}bottom_up.rescale."
    deconvolutions = {"1.0": "c2.0", "1.3": "c2.3", "2.0": "c3"}
    table = with_bias({f"backbone.interpolate{a}": f"{rescale}{b}" for a, b in deconvolutions.items()})
    table |= _norm("backbone.interpolate1.1", f"{rescale}c2.1")
    for i in range(4):
        table |= _convolution(f"neck.lateral_convs.{i}", f"{PYRAMID}fpn_lateral{i + 2}")
        table |= _convolution(f"neck.fpn_convs.{i}", f"{PYRAMID}fpn_output{i + 2}")
    return table


def heads_table() -> Table:
    """RPN of two convolutions; box head of four, two shared layers, and one more for each of classes and boxes."""
    table = with_bias(HEADS)
    for i in range(4):
        table |= _convolution(f"{HEAD}shared_convs.{i}", f"roi_heads.box_head.conv{i + 1}")
    return table | {
        f"{HEAD}cls_temp": Row(f"{PREDICTOR}cls_score.temperature", as_scalar),
        f"{HEAD}cls_embeddings": Row(f"{PREDICTOR}cls_score.zs_weight", text_matrix),
    }


def _norm(official: str, ours: str) -> Table:
    return {f"{official}.{name}": Row(f"{ours}.{name}") for name in (*STATISTICS, "num_batches_tracked")}


def _convolution(official: str, ours: str) -> Table:
    return {f"{official}.conv.weight": Row(f"{ours}.weight")} | _norm(f"{official}.bn", f"{ours}.norm")


CLIM_FVLM = Kind(
    name="clim-fvlm",
    what="CLIM's F-VLM on ViT-B/16 (MMDetection)",
    # Measured with exact GELU. The file holds the encoder's weights and the classes' embeddings.
    arguments="--eval-only --config-file configs/FVLM_ViTB16_CLIM_COCO.yaml MODEL.IMAGE_ENCODER.ARCHITECTURE ViT-B-16 "
    'MODEL.IMAGE_ENCODER.PRETRAINED "" MODEL.VOCABULARY.EMBEDDINGS ""',
    fits=is_fvlm,
    table=encoder_table() | pyramid_table() | heads_table(),
    left_out={},
)
