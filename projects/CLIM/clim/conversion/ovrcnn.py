"""OVR-CNN's detector, its second stage (ovrcnn §2, §4)."""

from .kind import Kind, Row, Table, with_bias
from .resnet import stage, stem
from .tensors import foreground_box, sizes_first, without_eps

BOX = "roi_heads.box."
PREDICTOR = "roi_heads.box_predictor."


def detector_table() -> Table:
    """Backbone, RPN with its anchors in Detectron2's order, res5, the frozen projection and the boxes of objects."""
    table = stem("backbone.body.stem.", "backbone.stem.", change_var=without_eps)
    for number in (1, 2, 3):
        names = (f"backbone.body.layer{number}.", f"backbone.res{number + 1}.")
        table |= stage(number, *names, change_var=without_eps)
    res5 = (f"{BOX}feature_extractor.head.layer4.", "roi_heads.res5.")
    table |= stage(4, *res5, change_var=without_eps)
    table |= with_bias({"rpn.head.conv": "proposal_generator.rpn_head.conv"})
    table |= with_bias({f"{BOX}predictor.emb_pred": f"{PREDICTOR}emb_pred"})
    for name in ("weight", "bias"):
        table |= {
            f"rpn.head.cls_logits.{name}": Row(
                f"proposal_generator.rpn_head.objectness_logits.{name}", sizes_first(1)
            ),
            f"rpn.head.bbox_pred.{name}": Row(
                f"proposal_generator.rpn_head.anchor_deltas.{name}", sizes_first(4)
            ),
            f"{BOX}predictor.bbox_pred.{name}": Row(f"{PREDICTOR}bbox_pred.{name}", foreground_box),
        }
    return table


OVRCNN = Kind(
    name="ovrcnn",
    what="OVR-CNN's detector (maskrcnn-benchmark)",
    arguments="--eval-only --config-file configs/OVRCNN_C4.yaml MODEL.ANCHOR_GENERATOR.NAME RoundedAnchorGenerator",
    fits=lambda state: f"{BOX}predictor.emb_pred.weight" in state,
    table=detector_table(),
    left_out={
        # 48 classes in training, 17 or 65 after a test: which ones, the file does not say.
        f"{BOX}predictor.cls_score.*": "class embeddings, frozen and rebuilt from MODEL.VOCABULARY",
        "rpn.anchor_generator.cell_anchors.*": "anchors, which the config describes",
    },
)
