"""The rules that rename the tensors of each official project's files.

MMDetection's detectors differ from ours in names alone. Both order anchors by size, then ratio (``scale_major=False``;
F-VLM has one size a level), normalise with eps 1e-5, regress with stds .1, .1, .2, .2 (our weights 10, 10, 5, 5),
subtract the same BGR mean, sort classes by COCO id and flatten maps as (C, 7, 7) (detic §2, §5; baron §2, §9;
clip_fvlm §4, §7). On LVIS the scales of CenterNet's levels differ in shape (detic §3). OVR-CNN's detectors differ in
layout too (ovrcnn §1, §2, §4).
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .convert import Kind, Rule, State

EPS = 1e-5  # of Detectron2's frozen batch normalisation
SIZES, RATIOS = 5, 3  # anchors of a C4 detector: 32 … 512 px, height / width .5, 1, 2
BLOCKS = {1: "<0-2>", 2: "<0-3>", 3: "<0-5>", 4: "<0-2>"}  # bottlenecks of ResNet-50's layer1 to layer4
GROUNDING, TRANSFORMER = "mmss_heads.GroundingHead.", "mmss_heads.TransformerHead."
BOX = "roi_heads.box."
HEAD, PREDICTOR = "roi_head.bbox_head.", "roi_heads.box_predictor."
RPN = "proposal_generator.rpn_head."
VISUAL, ENCODER, PYRAMID = "backbone.visual.", "backbone.encoder.visual.", "backbone.pyramid."
CENTERNET, STAGES = "proposal_generator.centernet_head.", "roi_head.bbox_head.<0-2>."


def without_eps(running_var: Tensor) -> Tensor:
    """The official layer divides by sqrt(var), Detectron2's by sqrt(var + EPS)."""
    return running_var - EPS


def as_scalar(value: Tensor) -> Tensor:
    """(1,) or () → ()."""
    return value.reshape(()).clone()


def as_vector(value: Tensor) -> Tensor:
    """() or (1,) → (1,)."""
    return value.reshape(1).clone()


def sizes_first(values: int) -> Callable[[Tensor], Tensor]:
    """Reorder the rows (A · ``values``, …) of an RPN's 1 x 1 convolution: maskrcnn-benchmark orders anchors by ratio,
    then size, and Detectron2 by size, then ratio. ``values``: 1 for objectness, 4 for deltas."""

    def change(rows: Tensor) -> Tensor:
        blocks = rows.reshape(RATIOS, SIZES, values, *rows.shape[1:])
        return blocks.transpose(0, 1).reshape(rows.shape)

    return change


def foreground_box(rows: Tensor) -> Tensor:
    """(8, …) → (4, …): the boxes of the object, without those of the background."""
    return rows.reshape(2, 4, *rows.shape[1:])[1].clone()


def text_matrix(class_embeddings: Tensor) -> Tensor:
    """(K, D) → (D, K + 1): unit columns, and zeros for the background, as in our classifiers."""
    columns = F.normalize(class_embeddings.float(), dim=1).T
    return torch.cat([columns, columns.new_zeros(len(columns), 1)], dim=1)


def resnet(
    *, stem: str, layer: str, layer4: str, ours: str = "backbone.", res5: str = "roi_heads.res5.",
    variance: Callable[[Tensor], Tensor] = Tensor.clone,
) -> list[Rule]:  # fmt: skip
    """ResNet-50 from torchvision's names to Detectron2's. All arguments but ``variance`` are prefixes.

    Args:
        layer: of layer1 to layer3, with {} for the number.
        variance: the change of running variances.
    """
    rules = normed(f"{stem}conv1", f"{stem}bn1", f"{ours}stem.conv1", variance)
    for number, blocks in BLOCKS.items():
        a, b = (layer4, res5) if number == 4 else (layer.format(number), f"{ours}res{number + 1}.")
        rules += normed(f"{a}0.downsample.0", f"{a}0.downsample.1", f"{b}0.shortcut", variance)
        rules += normed(f"{a}{blocks}.conv<1-3>", f"{a}{blocks}.bn<1-3>", f"{b}<>.conv<>", variance)
    return rules


def normed(conv: str, norm: str, ours: str, variance: Callable[[Tensor], Tensor]) -> list[Rule]:
    """A convolution without bias and its normalisation."""
    return [
        Rule(f"{conv}.weight", f"{ours}.weight"),
        Rule(f"{norm}.<weight,bias,running_mean>", f"{ours}.norm.<>"),
        Rule(f"{norm}.running_var", f"{ours}.norm.running_var", variance),
    ]


def kept(official: str, ours: str, *names: str, optional: bool = False) -> list[Rule]:
    """Rules that change only the prefix, from ``official`` to ``ours``."""
    slots = [re.sub("<.*?>", "<>", name) for name in names]
    return [
        Rule(f"{official}{name}", f"{ours}{slot}", optional=optional) for name, slot in zip(names, slots, strict=True)
    ]


OVRCNN_PRETRAIN = [
    *resnet(
        stem="backbone.body.stem.", layer="backbone.body.layer{}.", layer4="backbone.body.layer4.",
        ours="image_encoder.backbone.", res5="image_encoder.backbone.res5.", variance=without_eps,
    ),
    Rule(f"{GROUNDING}v2l_projection.<weight,bias>", "image_encoder.emb_pred.<>"),
    # The multimodal transformer, which the second stage does not need.
    *kept(
        TRANSFORMER, "method.transformer.",
        "encoder.layer.<0-5>.attention.self.<query,key,value>.<weight,bias>",
        "encoder.layer.<0-5>.<attention.output,intermediate,output>.dense.<weight,bias>",
        "encoder.layer.<0-5>.<attention.output,output>.LayerNorm.<weight,bias>",
        "visual_emb.<image_embeddings,image_location_embeddings,LayerNorm>.<weight,bias>",
        "heads.predictions.transform.<dense,LayerNorm>.<weight,bias>",
        "<heads.bi_seq_relationship,pooler.dense>.<weight,bias>",
        "heads.predictions.bias",
        optional=True,
    ),
]  # fmt: skip
OVRCNN = [
    *resnet(
        stem="backbone.body.stem.", layer="backbone.body.layer{}.",
        layer4=f"{BOX}feature_extractor.head.layer4.", variance=without_eps,
    ),
    Rule("rpn.head.conv.<weight,bias>", f"{RPN}conv.<>"),
    Rule("rpn.head.cls_logits.<weight,bias>", f"{RPN}objectness_logits.<>", sizes_first(1)),
    Rule("rpn.head.bbox_pred.<weight,bias>", f"{RPN}anchor_deltas.<>", sizes_first(4)),
    Rule(f"{BOX}predictor.emb_pred.<weight,bias>", f"{PREDICTOR}emb_pred.<>"),
    Rule(f"{BOX}predictor.bbox_pred.<weight,bias>", f"{PREDICTOR}bbox_pred.<>", foreground_box),
]  # fmt: skip
MMDET_C4 = [
    *resnet(stem="backbone.", layer="backbone.layer{}.", layer4="roi_head.shared_head.layer4."),
    Rule("rpn_head.rpn_<conv,cls,reg>.<weight,bias>", f"{RPN}<conv,objectness_logits,anchor_deltas>.<>"),
    Rule(f"{HEAD}fc_cls.<weight,bias>", f"{PREDICTOR}cls_score.linear.<>"),
    Rule(f"{HEAD}fc_reg.<0,2>.<weight,bias>", f"{PREDICTOR}bbox_pred.<>.<>"),
    Rule(f"{HEAD}cls_bias", f"{PREDICTOR}cls_score.cls_bias"),
    Rule(f"{HEAD}cls_embeddings", f"{PREDICTOR}cls_score.zs_weight", text_matrix),
]
# The detector trained on captions alone has no bias of tags, the base stage has neither bias nor positions.
CLIM_DETIC = [
    *MMDET_C4,
    Rule("roi_head.detic_<caption,tags>.bce_bias", "method.bias.<caption,tag>", as_scalar, optional=True),
]
OVDET_BARON = [
    *MMDET_C4,
    Rule(
        "roi_head.baron_caption.positional_embed.pos_proj.<0-2>.<weight,bias>", "method.positional_embed.<>.<>",
        optional=True,
    ),
]  # fmt: skip
NORM, FROZEN = "<weight,bias,running_mean,running_var,num_batches_tracked>", "<weight,bias,running_mean,running_var>"


def conv_norm(official: str, ours: str) -> list[Rule]:
    """MMDetection's ConvModule without a bias, and its normalisation."""
    return [Rule(f"{official}.conv.weight", f"{ours}.weight"), Rule(f"{official}.bn.{NORM}", f"{ours}.norm.<>")]


def clip_resnet(blocks: dict[int, str]) -> list[Rule]:
    """CLIP's ResNet under open_clip's names in both; ``blocks`` of layer1 to layer4, as :data:`BLOCKS`."""
    layers = ["", *(f"layer{number}.{of_layer}." for number, of_layer in blocks.items())]
    convs = [*(f"{layer}conv<1-3>" for layer in layers), "layer<1-4>.0.downsample.0"]
    norms = [*(f"{layer}bn<1-3>" for layer in layers), "layer<1-4>.0.downsample.1"]
    pool = ["attnpool.positional_embedding", "attnpool.<q,k,v,c>_proj.<weight,bias>"]
    names = [*pool, *(f"{conv}.weight" for conv in convs), *(f"{norm}.{FROZEN}" for norm in norms)]
    counts = [f"{norm}.num_batches_tracked" for norm in norms]  # a frozen norm may have none
    return kept(VISUAL, ENCODER, *names) + kept(VISUAL, ENCODER, *counts, optional=True)


# F-VLM: a frozen encoder, which the file holds whole; a pyramid; heads.
FVLM_VIT = [
    *kept(
        VISUAL, ENCODER,
        "<class_embedding,positional_embedding,proj,conv1.weight>",
        "ln_<pre,post>.<weight,bias>",
        "transformer.resblocks.<0-11>.<ln_1,ln_2,attn.out_proj,mlp.c_fc,mlp.c_proj>.<weight,bias>",
        "transformer.resblocks.<0-11>.attn.in_proj_<weight,bias>",
    ),
    # Deconvolutions to strides 4 and 8.
    Rule("backbone.interpolate<1.0,1.3,2.0>.<weight,bias>", f"{PYRAMID}bottom_up.rescale.<c2.0,c2.3,c3>.<>"),
    Rule(f"backbone.interpolate1.1.{NORM}", f"{PYRAMID}bottom_up.rescale.c2.1.<>"),
]  # fmt: skip
FVLM_FPN = conv_norm("neck.<lateral,fpn>_convs.<0-3>", f"{PYRAMID}fpn_<lateral,output><2-5>")
CELLS = "neck.fpn_stages.<0-6>.<gp_64_4,sum_44_4,sum_43_3,sum_34_4,sum_55_5,sum_77_7,gp_75_6>.out_conv"
OUR_CELLS = f"{PYRAMID}stacks.<>.<p3_first,p3_second,p2,p3,p4,p6,p5>"  # p2 is MMDetection's p3
FVLM_NAS_FPN = [
    *conv_norm("neck.lateral_convs.<0-3>", f"{PYRAMID}laterals.<>"),
    *conv_norm("neck.extra_downsamples.0.0", f"{PYRAMID}extra"),
    *conv_norm(CELLS, OUR_CELLS),
    Rule(f"{CELLS}.conv.bias", f"{OUR_CELLS}.bias"),
]
FVLM_HEADS = [
    Rule("rpn_head.rpn_<cls,reg>.<weight,bias>", f"{RPN}<objectness_logits,anchor_deltas>.<>"),
    # Four convolutions and two shared layers, then one more for classes and one for boxes.
    *conv_norm(f"{HEAD}shared_convs.<0-3>", "roi_heads.box_head.conv<1-4>"),
    Rule(f"{HEAD}shared_fcs.<0,1>.<weight,bias>", "roi_heads.box_head.fc<1,2>.<>"),
    Rule(f"{HEAD}<cls_fcs.0,fc_cls,bg_embedding>.<weight,bias>", f"{PREDICTOR}cls_score.<hidden,linear,background>.<>"),
    Rule(f"{HEAD}<reg_fcs.0,fc_reg>.<weight,bias>", f"{PREDICTOR}bbox_pred.<0,2>.<>"),
    Rule(f"{HEAD}cls_temp", f"{PREDICTOR}cls_score.temperature", as_scalar),
    Rule(f"{HEAD}cls_embeddings", f"{PREDICTOR}cls_score.zs_weight", text_matrix),
]
PLAIN_RPN = [Rule("rpn_head.rpn_conv.<0,1>.conv.<weight,bias>", f"{RPN}conv.conv<>.<>")]
FVLM_MASKS = [
    *conv_norm("roi_head.mask_head.convs.<0-3>", "roi_heads.mask_head.mask_fcn<1-4>"),
    Rule("roi_head.mask_head.<upsample,conv_logits>.<weight,bias>", "roi_heads.mask_head.<deconv,predictor>.<>"),
]
CLIM_FVLM = [*FVLM_VIT, *FVLM_FPN, *PLAIN_RPN, *FVLM_HEADS]
CLIM_FVLM_LVIS = [*FVLM_VIT, *FVLM_NAS_FPN, *PLAIN_RPN, *FVLM_HEADS, *FVLM_MASKS]
CLIM_FVLM_RN50X64 = [
    *clip_resnet({1: "<0-2>", 2: "<0-14>", 3: "<0-35>", 4: "<0-9>"}), *FVLM_FPN,
    *conv_norm("rpn_head.rpn_conv.<0,1>", f"{RPN}conv.conv<>"), *FVLM_HEADS, *FVLM_MASKS,
]  # fmt: skip

TRUNK = "backbone.bottom_up.base."
CLIM_DETIC_LVIS = [
    # ResNet-50 under torchvision's names, and the FPN with two more levels: fpn_convs.3 and .4 are p6 and p7.
    *kept("backbone.", TRUNK, "conv1.weight", f"bn1.{FROZEN}"),
    *kept("backbone.", TRUNK, "layer<1-4>.0.downsample.0.weight", f"layer<1-4>.0.downsample.1.{FROZEN}"),
    *(
        rule
        for number, blocks in BLOCKS.items()
        for layer in [f"layer{number}.{blocks}."]
        for rule in kept("backbone.", TRUNK, f"{layer}conv<1-3>.weight", f"{layer}bn<1-3>.{FROZEN}")
    ),
    Rule("neck.lateral_convs.<0-2>.conv.<weight,bias>", "backbone.fpn_lateral<3-5>.<>"),
    Rule("neck.fpn_convs.<0-2>.conv.<weight,bias>", "backbone.fpn_output<3-5>.<>"),
    Rule("neck.fpn_convs.<3,4>.conv.<weight,bias>", "backbone.top_block.<p6,p7>.<>"),
    # One tower before the heat map and the boxes.
    Rule("rpn_head.reg_convs.<0-3>.conv.<weight,bias>", f"{CENTERNET}bbox_tower.<0,3,6,9>.<>"),
    Rule("rpn_head.reg_convs.<0-3>.gn.<weight,bias>", f"{CENTERNET}bbox_tower.<1,4,7,10>.<>"),
    Rule("rpn_head.conv_<cls,reg>.<weight,bias>", f"{CENTERNET}<agn_hm,bbox_pred>.<>"),
    Rule("rpn_head.scales.<0-4>.scale", f"{CENTERNET}scales.<>.scale", as_vector),
    # Three stages, each with two layers of its own, then one for classes and two for boxes.
    Rule(f"{STAGES}shared_fcs.<0,1>.<weight,bias>", "roi_heads.box_head.<>.<fc1,fc2>.<>"),
    Rule(f"{STAGES}fc_cls.linear.<weight,bias>", f"{PREDICTOR}<>.cls_score.linear.<>"),
    Rule(f"{STAGES}fc_cls.zs_weight", f"{PREDICTOR}<>.cls_score.zs_weight"),
    Rule(f"{STAGES}fc_reg.<0,2>.<weight,bias>", f"{PREDICTOR}<>.bbox_pred.<>.<>"),
    Rule(f"{STAGES}freq_weight", f"{PREDICTOR}<>.freq_weight"),
    Rule("roi_head.mask_head.convs.<0-3>.conv.<weight,bias>", "roi_heads.mask_head.mask_fcn<1-4>.<>"),
    Rule("roi_head.mask_head.<upsample,conv_logits>.<weight,bias>", "roi_heads.mask_head.<deconv,predictor>.<>"),
]  # fmt: skip


def is_c4(state: State) -> bool:
    """Whether a file holds MMDetection's Faster R-CNN R50-C4 with a text classifier."""
    layer4 = "roi_head.shared_head.layer4.0.conv1.weight"
    return {f"{HEAD}fc_cls.weight", f"{HEAD}cls_embeddings", layer4} <= set(state)


def classifies_by_words(state: State) -> bool:
    """Whether a region becomes several word embeddings (BARON), not one of the classes' width (Detic)."""
    return state[f"{HEAD}fc_cls.weight"].shape[0] != state[f"{HEAD}cls_embeddings"].shape[1]


def is_fvlm(encoder: str, neck: str) -> Callable[[State], bool]:
    """Whether a file holds a frozen CLIP and a neck with these tensors."""
    return lambda state: {VISUAL + encoder, f"neck.{neck}.conv.weight"} <= set(state)


def is_centernet2(state: State) -> bool:
    """Whether a file holds MMDetection's CenterNet2 with text classifiers: a cascade on CenterNet's proposals."""
    return {"rpn_head.scales.0.scale", f"{HEAD}0.fc_cls.zs_weight"} <= set(state)


OWN_CLASSES = 'MODEL.VOCABULARY.EMBEDDINGS ""'  # the class embeddings that the file holds, as published
OWN_ENCODER = 'MODEL.IMAGE_ENCODER.PRETRAINED ""'
GELU = "MODEL.IMAGE_ENCODER.ARCHITECTURE ViT-B-16"
LEFT_OUT = {
    "*.num_batches_tracked": "counts of normalisations that are frozen",
    "roi_head.clip.*": "the frozen text tower, which MODEL.TEXT names",
    f"{HEAD}bg_embedding": "the background's embedding, zeros in both",
    "roi_head.detic_tags.tag_embeddings": "the classes' embeddings once more",
}
_ALL = [
    Kind(
        name="ovrcnn-pretrain",
        what="OVR-CNN's pre-trained network (maskrcnn-benchmark)",
        arguments="--num-gpus 8 --config-file configs/OVRCNN_C4.yaml",  # the second stage starts from it
        fits=lambda state: f"{GROUNDING}v2l_projection.weight" in state,
        rules=OVRCNN_PRETRAIN,
        left_out={
            "language_backbone.*": "frozen BERT, which MODEL.TEXT names",
            f"{TRANSFORMER}v2l_projection.*": "the projection once more",
            f"{TRANSFORMER}backbone.*": "frozen BERT once more",
            f"{TRANSFORMER}heads.predictions.decoder.*": "BERT's word embeddings and the bias once more",
            f"{TRANSFORMER}heads.imagePredictions.*": "a head for hidden locations, which was never trained",
        },
    ),
    Kind(
        name="ovrcnn",
        what="OVR-CNN's detector (maskrcnn-benchmark)",
        arguments="--eval-only --config-file configs/OVRCNN_C4.yaml MODEL.ANCHOR_GENERATOR.NAME RoundedAnchorGenerator",
        fits=lambda state: f"{BOX}predictor.emb_pred.weight" in state,
        rules=OVRCNN,
        left_out={
            # 48 classes after training, 17 or 65 after a test; the file does not say which.
            f"{BOX}predictor.cls_score.*": "class embeddings, frozen and rebuilt from MODEL.VOCABULARY",
            "rpn.anchor_generator.cell_anchors.*": "anchors, which the config describes",
        },
    ),
    Kind(
        name="clim-detic",
        what="CLIM's Detic on R50-C4 (MMDetection)",
        arguments=f"--eval-only --config-file configs/Detic_CLIM_C4.yaml {OWN_CLASSES}",
        fits=lambda state: is_c4(state) and not classifies_by_words(state),
        rules=CLIM_DETIC,
        left_out=LEFT_OUT,
    ),
    Kind(
        name="ovdet-baron",
        what="ovdet's BARON on R50-C4 (MMDetection)",
        arguments=f"--eval-only --config-file configs/BARON_C4_joint.yaml {OWN_CLASSES}",
        fits=lambda state: is_c4(state) and classifies_by_words(state),
        rules=OVDET_BARON,
        left_out=LEFT_OUT,
    ),
    Kind(
        name="clim-detic-lvis",
        what="CLIM's Detic on CenterNet2 R50, with masks (MMDetection)",
        arguments=f"--eval-only --config-file configs/lvis/Detic_CLIM_C2.yaml {OWN_CLASSES}",
        fits=is_centernet2,
        rules=CLIM_DETIC_LVIS,
        left_out=LEFT_OUT,
    ),
    Kind(
        name="clim-fvlm",
        what="CLIM's F-VLM on ViT-B/16 (MMDetection)",
        # Measured with exact GELU. The file holds the encoder's weights and the classes' embeddings.
        arguments=f"--eval-only --config-file configs/FVLM_ViTB16_CLIM_COCO.yaml {GELU} {OWN_ENCODER} {OWN_CLASSES}",
        fits=is_fvlm("class_embedding", "fpn_convs.0"),
        rules=CLIM_FVLM,
        left_out={},
    ),
    Kind(
        name="clim-fvlm-lvis",
        what="CLIM's F-VLM on ViT-B/16 with NAS-FPN and masks (MMDetection)",
        arguments="--eval-only --config-file configs/lvis/FVLM_ViTB16_CLIM_LVIS.yaml "
        f"{GELU} {OWN_ENCODER} {OWN_CLASSES}",
        fits=is_fvlm("class_embedding", "fpn_stages.0.sum_44_4.out_conv"),
        rules=CLIM_FVLM_LVIS,
        left_out={},
    ),
    Kind(
        name="clim-fvlm-rn50x64",
        what="CLIM's F-VLM on RN50x64 with FPN and masks (MMDetection)",
        arguments=f"--eval-only --config-file configs/lvis/FVLM_RN50x64_CLIM_LVIS.yaml {OWN_ENCODER} {OWN_CLASSES}",
        fits=is_fvlm("attnpool.positional_embedding", "fpn_convs.0"),
        rules=CLIM_FVLM_RN50X64,
        left_out={},
    ),
]
KINDS = {kind.name: kind for kind in _ALL}
