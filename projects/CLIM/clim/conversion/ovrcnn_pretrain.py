"""OVR-CNN's network after its first stage, vision-language pre-training (ovrcnn.md §1, §4)."""

from .kind import Kind, Table, with_bias
from .resnet import stage, stem
from .tensors import without_eps

GROUNDING = "mmss_heads.GroundingHead."
TRANSFORMER = "mmss_heads.TransformerHead."


def encoder_table() -> Table:
    """ResNet-50 and the projection of its cells into the space of words."""
    table = stem("backbone.body.stem.", "image_encoder.backbone.stem.", change_var=without_eps)
    for number in (1, 2, 3, 4):
        names = (f"backbone.body.layer{number}.", f"image_encoder.backbone.res{number + 1}.")
        table |= stage(number, *names, change_var=without_eps)
    return table | with_bias({f"{GROUNDING}v2l_projection": "image_encoder.emb_pred"})


OVRCNN_PRETRAIN = Kind(
    name="ovrcnn-pretrain",
    what="OVR-CNN's pre-trained network (maskrcnn-benchmark)",
    arguments="--num-gpus 8 --config-file configs/OVRCNN_C4.yaml",  # the second stage starts from it
    fits=lambda state: f"{GROUNDING}v2l_projection.weight" in state,
    table=encoder_table(),
    left_out={
        "language_backbone.*": "frozen BERT, which MODEL.TEXT names",
        f"{TRANSFORMER}v2l_projection.*": "the projection once more",
        f"{TRANSFORMER}*": "the multimodal transformer, which no detector reads",
    },
)
