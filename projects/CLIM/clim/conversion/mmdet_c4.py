"""MMDetection's Faster R-CNN R50-C4 with a text classifier: what CLIM's Detic and ovdet's BARON share.

Both order their anchors as Detectron2 does (``scale_major=False``), normalise with eps 1e-5, regress with stds
.1, .1, .2, .2 (our weights 10, 10, 5, 5), subtract the same BGR mean and sort classes by ascending COCO id, so
that only names differ (detic §2, §5; baron §2, §9).
"""

from .kind import Row, State, Table, with_bias
from .resnet import stage, stem
from .tensors import text_matrix

HEAD = "roi_head.bbox_head."
PREDICTOR = "roi_heads.box_predictor."
OWN_CLASSES = 'MODEL.VOCABULARY.EMBEDDINGS ""'  # those that the file holds, as published
LAYERS = {
    "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
    "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    f"{HEAD}fc_cls": f"{PREDICTOR}cls_score.linear",
    f"{HEAD}fc_reg.0": f"{PREDICTOR}bbox_pred.0",
    f"{HEAD}fc_reg.2": f"{PREDICTOR}bbox_pred.2",
}
LEFT_OUT = {
    "*.num_batches_tracked": "counts of normalisations that are frozen",
    "roi_head.clip.*": "the frozen text tower, which MODEL.TEXT names",
    f"{HEAD}bg_embedding": "the background's embedding, zeros in both",
}


def is_c4(state: State) -> bool:
    """Whether a file is of such a detector."""
    return {
        f"{HEAD}fc_cls.weight",
        f"{HEAD}cls_embeddings",
        "roi_head.shared_head.layer4.0.conv1.weight",
    } <= set(state)


def classifies_by_words(state: State) -> bool:
    """Whether regions become several word embeddings (BARON), not one embedding of the classes' width (Detic)."""
    return state[f"{HEAD}fc_cls.weight"].shape[0] != state[f"{HEAD}cls_embeddings"].shape[1]


def detector_table() -> Table:
    """Backbone, RPN, res5, classifier and box head."""
    table = stem("backbone.", "backbone.stem.")
    for number in (1, 2, 3):
        table |= stage(number, f"backbone.layer{number}.", f"backbone.res{number + 1}.")
    table |= stage(4, "roi_head.shared_head.layer4.", "roi_heads.res5.")
    table |= with_bias(LAYERS)
    return table | {
        f"{HEAD}cls_bias": Row(f"{PREDICTOR}cls_score.cls_bias"),
        f"{HEAD}cls_embeddings": Row(f"{PREDICTOR}cls_score.zs_weight", text_matrix),
    }
