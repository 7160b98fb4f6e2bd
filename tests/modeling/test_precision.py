"""Where mixed precision is half precision, and that gradients come through it."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from clim.modeling.precision import autocast_backbone


@contextmanager
def precisions(model):
    """{place: types of its outputs} of what runs inside: backbone, RPN, last blocks, projection."""
    seen = {}
    places = {
        "backbone": model.backbone.stem[0],
        "rpn": model.proposal_generator.rpn_head.objectness_logits,
        "res5": model.roi_heads.res5.blocks[0],
        "linear": model.classifier.linear,
    }
    hooks = [
        layer.register_forward_hook(
            lambda m, i, out, place=place: seen.setdefault(place, set()).add(out.dtype)
        )
        for place, layer in places.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


HALF, FULL = {torch.bfloat16}, {torch.float32}


@pytest.mark.parametrize("fp32_heads, rest", [(True, FULL), (False, HALF)])
def test_mixed_precision(build_detector, fp32_heads, rest, picture, joint_batch, train_step, detect):
    """Official Detic: the backbone alone in half precision. CLIM release: the whole model."""
    model = build_detector("mini/detic_clim.yaml", "MODEL.OPEN_VOCAB.FP32_HEADS", fp32_heads)
    with precisions(model) as seen, torch.autocast("cpu", torch.bfloat16):
        losses = train_step(model, joint_batch())
    assert seen == {"backbone": HALF, "rpn": rest, "res5": rest, "linear": rest}
    assert all(torch.isfinite(loss) for loss in losses.values())
    with precisions(model) as seen, torch.autocast("cpu", torch.bfloat16):
        detect(model, picture(64, 64))
    assert seen == {"backbone": HALF, "rpn": rest, "res5": rest, "linear": rest}
    with precisions(model) as seen:  # autocast is off
        train_step(model, joint_batch())
    assert seen == dict.fromkeys(seen, FULL)


def test_the_wrapped_backbone_gets_its_gradients(build_detector, joint_batch, train_step):
    model = build_detector("mini/detic_clim.yaml", "MODEL.OPEN_VOCAB.FP32_HEADS", True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = train_step(model, joint_batch(captions=False, mosaics=False))
    sum(losses.values()).backward()
    assert model.backbone.trunk.blocks[-1]._project_conv.weight.grad.abs().sum() > 0


class Doubling(nn.Module):
    """A detector as far as precision goes: a backbone, and what follows it."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        run = self.backbone.forward
        self.backbone.forward = lambda x: {"map": run(x)}
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        self.given = self.backbone(x)["map"]
        return self.head(self.given)


def test_wrapping_changes_neither_names_nor_results_without_autocast():
    model, x = Doubling(), torch.randn(4, 3)
    names, expected = list(model.state_dict()), model(x)
    autocast_backbone(model)
    assert list(model.state_dict()) == names and torch.equal(model(x), expected)
    # Maps leave the backbone with half precision's values, but as float32.
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    half = (x.bfloat16() @ model.backbone.weight.bfloat16().T + model.backbone.bias.bfloat16()).float()
    assert model.given.dtype == output.dtype == torch.float32
    torch.testing.assert_close(model.given, half, rtol=2**-7, atol=2**-9)
    assert torch.equal(model.given, model.given.bfloat16().float())
    torch.testing.assert_close(output, nn.functional.linear(model.given, model.head.weight, model.head.bias))
