"""CLIM's Detic on OV-LVIS: converted weights have official Detic's names and shapes, and give MMDetection's numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F
from torchvision.models import resnet50

from clim.errors import UserError
from conversion.convert import convert, find_kind
from conversion.rules import KINDS

MANIFEST = json.loads((Path(__file__).parents[2] / "modeling/detic_ovlvis_r50_keys.json").read_text())
KIND, HEAD, MASK = KINDS["clim-detic-lvis"], "roi_head.bbox_head.", "roi_head.mask_head."
UNUSED = ("backbone.bottom_up.base.fc.", "num_batches_tracked")  # not in these files


def official_shapes(channels, hidden, dim, classes):
    """{MMDetection's name: shape} of all that a file of Detic + CLIM holds."""
    with torch.device("meta"):
        trunk = resnet50().state_dict()
    shapes = {f"backbone.{name}": tuple(tensor.shape) for name, tensor in trunk.items() if name[:3] != "fc."}

    def layer(name, rows, *columns):
        shapes.update({f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)})

    for i in range(5):
        layer(f"neck.fpn_convs.{i}.conv", channels, channels, 3, 3)
        shapes[f"rpn_head.scales.{i}.scale"] = ()
    for i in range(4):
        layer(f"rpn_head.reg_convs.{i}.conv", channels, channels, 3, 3)
        layer(f"rpn_head.reg_convs.{i}.gn", channels)
        layer(f"{MASK}convs.{i}.conv", channels, channels, 3, 3)
    for i in range(3):
        layer(f"neck.lateral_convs.{i}.conv", channels, 512 * 2**i, 1, 1)
        layer(f"{HEAD}{i}.shared_fcs.0", hidden, 49 * channels)
        for name, rows in (("shared_fcs.1", hidden), ("fc_cls.linear", dim), ("fc_reg.0", hidden), ("fc_reg.2", 4)):
            layer(f"{HEAD}{i}.{name}", rows, hidden)
        shapes |= {f"{HEAD}{i}.fc_cls.zs_weight": (dim, classes + 1), f"{HEAD}{i}.freq_weight": (classes,)}
    layer("rpn_head.conv_cls", 1, channels, 3, 3)
    layer("rpn_head.conv_reg", 4, channels, 3, 3)
    layer(f"{MASK}upsample", channels, channels, 2, 2)
    layer(f"{MASK}conv_logits", 1, channels, 1, 1)
    more = {"roi_head.clip.text_encoder.ln_final.weight": (dim,), "roi_head.detic_tags.tag_embeddings": (classes, dim)}
    return shapes | more


def drawn(name, shape):
    """Noise that keeps features near 1; variances and the weights of normalisations are positive."""
    if name.endswith("tracked"):
        return torch.tensor(7)
    if len(shape) < 2:
        positive = (0.2 if "bn3" in name else 1.0) * (0.5 + torch.rand(shape))
        return positive if name.endswith(("var", "weight", "scale")) else 0.1 * torch.randn(shape)
    return torch.randn(shape) / math.prod(shape[1:]) ** 0.5


def official_numbers(state, image, regions, mask_regions):
    """The forward of MMDetection's parts, on (1, 3, H, W), and on pooled (R, C, 7, 7) and (R, C, 14, 14)."""

    def layer(name, x, apply=F.conv2d, **options):
        return apply(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    net, found = resnet50().eval(), {}
    net.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if "backbone" in k}, strict=False)
    c2 = net.layer1(net.maxpool(net.bn1(net.conv1(image)).relu()))
    c3 = net.layer2(c2)
    c4 = net.layer3(c3)
    laterals = [layer(f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate((c3, c4, net.layer4(c4)))]
    for i in (1, 0):
        laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], scale_factor=2, mode="nearest")
    maps = [layer(f"neck.fpn_convs.{i}.conv", x, padding=1) for i, x in enumerate(laterals)]
    maps.append(layer("neck.fpn_convs.3.conv", maps[2], stride=2, padding=1))
    maps.append(layer("neck.fpn_convs.4.conv", maps[3].relu(), stride=2, padding=1))
    for level, x in enumerate(maps):
        found[f"p{level + 3}"] = x
        for i in range(4):
            x = layer(f"rpn_head.reg_convs.{i}.conv", x, padding=1)
            x = F.group_norm(x, 32, *(state[f"rpn_head.reg_convs.{i}.gn.{name}"] for name in ("weight", "bias"))).relu()
        found[f"heat map {level}"] = layer("rpn_head.conv_cls", x, padding=1)
        found[f"boxes {level}"] = state[f"rpn_head.scales.{level}.scale"] * layer("rpn_head.conv_reg", x, padding=1)
    for head in (f"{HEAD}{i}." for i in range(3)):
        x = layer(f"{head}shared_fcs.0", regions.flatten(1), F.linear).relu()
        x = layer(f"{head}shared_fcs.1", x, F.linear).relu()
        embeddings = F.normalize(layer(f"{head}fc_cls.linear", x, F.linear), dim=1)
        found[f"{head}logits"] = 50 * embeddings @ state[f"{head}fc_cls.zs_weight"]
        found[f"{head}deltas"] = layer(f"{head}fc_reg.2", layer(f"{head}fc_reg.0", x, F.linear).relu(), F.linear)
    for i in range(4):
        mask_regions = layer(f"{MASK}convs.{i}.conv", mask_regions, padding=1).relu()
    mask_regions = layer(f"{MASK}upsample", mask_regions, F.conv_transpose2d, stride=2).relu()
    return found | {"masks": layer(f"{MASK}conv_logits", mask_regions)}


def our_numbers(model, image, regions, mask_regions):
    """The same numbers of our detector's layers."""
    proposer, heads, found = model.proposal_generator.centernet_head, model.roi_heads, {}
    for level, (name, x) in enumerate(model.backbone(image).items()):
        found[name], x = x, proposer.bbox_tower(x)
        found[f"heat map {level}"] = proposer.agn_hm(x)
        found[f"boxes {level}"] = proposer.scales[level].scale * proposer.bbox_pred(x)
    for i, (box_head, predictor) in enumerate(zip(heads.box_head, heads.box_predictor, strict=True)):
        x = box_head(regions)
        found |= {f"{HEAD}{i}.logits": predictor.cls_score(x), f"{HEAD}{i}.deltas": predictor.bbox_pred(x)}
    return found | {"masks": heads.mask_head.layers(mask_regions)}


def test_names_and_shapes():
    """All of official Detic, but the layer and the counts that no one uses."""
    state = {n: torch.empty(s, device="meta") for n, s in official_shapes(256, 1024, 512, 1203).items()}
    assert find_kind(state, KINDS.values()) is KIND and not any(k.fits(state) for k in KINDS.values() if k is not KIND)
    converted = convert(state, KIND)
    ours = {name: list(tensor.shape) for name, tensor in converted.weights.items()}
    assert ours == {name: shape for name, shape in MANIFEST.items() if not any(part in name for part in UNUSED)}
    assert not converted.unknown and not converted.missing
    assert sorted(map(len, converted.left_out.values())) == [1, 1, 53]  # text tower, tags' embeddings, counts
    base = {name: tensor for name, tensor in state.items() if "roi_head.clip" not in name and "detic" not in name}
    assert set(convert(base, KIND).weights) == set(ours)  # the base stage
    odd = f"{MASK}convs.4.conv.weight"
    assert convert(state | {odd: torch.empty(1)}, KIND).unknown == [odd]
    del base["neck.fpn_convs.4.conv.bias"]
    with pytest.raises(UserError, match=r"lacks 1 of the 354 tensors .* neck\.fpn_convs\.4\.conv\.bias"):
        convert(base, KIND)
    with pytest.raises(UserError, match="set MODEL.WEIGHTS to it as it is"):  # official Detic's own file
        find_kind(dict.fromkeys(MANIFEST, torch.empty(1)), KINDS.values())


@torch.no_grad()
def test_the_converted_layers_compute_what_the_official_ones_do(load_cfg):
    torch.manual_seed(0)
    state = {name: drawn(name, shape) for name, shape in official_shapes(64, 24, 12, 5).items()}
    for i in range(3):  # unit columns, and the background
        state[f"{HEAD}{i}.fc_cls.zs_weight"] = F.pad(F.normalize(torch.randn(12, 5), dim=0), (0, 1))
    keys = (
        "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.WEIGHTS", "", "MODEL.OPEN_VOCAB.BASE_CLASSES", "",
        "MODEL.TEXT.DIM", 12, "MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.FPN.OUT_CHANNELS", 64,
        "MODEL.ROI_BOX_HEAD.FC_DIM", 24, "MODEL.ROI_MASK_HEAD.CONV_DIM", 64,
    )  # fmt: skip
    model = build_model(load_cfg("lvis/Detic_CLIM_C2.yaml", *keys)).eval()
    model.load_state_dict(convert(state, KIND).weights)
    inputs = torch.randn(1, 3, 128, 256), torch.randn(3, 64, 7, 7), torch.randn(3, 64, 14, 14)
    torch.testing.assert_close(our_numbers(model, *inputs), official_numbers(state, *inputs), rtol=1e-4, atol=1e-4)
