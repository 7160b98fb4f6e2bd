"""OVR-CNN's network after its first stage, vision-language pre-training (ovrcnn §1, §4)."""

from .kind import Kind, Row, Table, with_bias
from .resnet import stage, stem
from .tensors import without_eps

GROUNDING = "mmss_heads.GroundingHead."
TRANSFORMER = "mmss_heads.TransformerHead."
LAYERS = 6  # of the transformer


def encoder_table() -> Table:
    """ResNet-50 and the projection of its cells into the space of words."""
    table = stem("backbone.body.stem.", "image_encoder.backbone.stem.", change_var=without_eps)
    for number in (1, 2, 3, 4):
        names = (f"backbone.body.layer{number}.", f"image_encoder.backbone.res{number + 1}.")
        table |= stage(number, *names, change_var=without_eps)
    return table | with_bias({f"{GROUNDING}v2l_projection": "image_encoder.emb_pred"})


def transformer_table() -> Table:
    """The multimodal transformer, which a second stage does not need. Names below its own are BERT's in both."""
    layer = [f"attention.self.{part}" for part in ("query", "key", "value")]
    layer += [f"{part}.dense" for part in ("attention.output", "intermediate", "output")]
    layer += [f"{part}.LayerNorm" for part in ("attention.output", "output")]
    names = [f"encoder.layer.{i}.{name}" for i in range(LAYERS) for name in layer]
    parts = ("image_embeddings", "image_location_embeddings", "LayerNorm")
    names += [f"visual_emb.{part}" for part in parts]
    names += [f"heads.predictions.transform.{part}" for part in ("dense", "LayerNorm")]
    names += ["heads.bi_seq_relationship", "pooler.dense"]
    ours = "method.transformer."
    table = with_bias({f"{TRANSFORMER}{name}": f"{ours}{name}" for name in names}, optional=True)
    bias = "heads.predictions.bias"
    return table | {f"{TRANSFORMER}{bias}": Row(f"{ours}{bias}", optional=True)}


OVRCNN_PRETRAIN = Kind(
    name="ovrcnn-pretrain",
    what="OVR-CNN's pre-trained network (maskrcnn-benchmark)",
    arguments="--num-gpus 8 --config-file configs/OVRCNN_C4.yaml",  # the second stage starts from it
    fits=lambda state: f"{GROUNDING}v2l_projection.weight" in state,
    table=encoder_table() | transformer_table(),
    left_out={
        "language_backbone.*": "frozen BERT, which MODEL.TEXT names",
        f"{TRANSFORMER}v2l_projection.*": "the projection once more",
        f"{TRANSFORMER}backbone.*": "frozen BERT once more",
        f"{TRANSFORMER}heads.predictions.decoder.*": "BERT's word embeddings and the bias once more",
        f"{TRANSFORMER}heads.imagePredictions.*": "a head for hidden cells, which was never trained",
    },
)
