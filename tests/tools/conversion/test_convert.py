"""Rules applied to files: what is taken, left out, unknown and missing, and how a kind is found."""

import pytest
import torch

from clim.errors import UserError
from conversion.convert import Kind, Rule, convert, find_kind, listed
from conversion.rules import KINDS

PLAIN = Kind(
    name="plain",
    what="a test",
    arguments="--eval-only",
    fits=lambda state: "a.weight" in state,
    rules=[
        Rule("a.<weight,bias>", "ours.a.<>"),
        Rule("b", "ours.b", lambda x: x.reshape(2, 2).T),
        Rule("c", "ours.c", optional=True),
    ],
    left_out={"text.*": "frozen", "*.count": "counts"},
)


def whole(**more):
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "b": torch.arange(4.0)}
    return state | more


def test_slots_of_a_rule():
    rule = Rule("a.<x,y>.<0-2>", "b.<>.c<1-3>")
    assert [(single.official, single.ours) for single in rule.singles()] == [
        (f"a.{word}.{i}", f"b.{word}.c{i + 1}") for word in "xy" for i in range(3)
    ]
    with pytest.raises(ValueError):
        list(Rule("a.<x,y>", "b.<p,q,r>").singles())


def test_names_layouts_and_the_rest():
    names = ("text.x", "text.count", "z.count", "z")
    converted = convert(whole(**{name: torch.ones(1) for name in names}), PLAIN)
    assert list(converted.weights) == ["ours.a.weight", "ours.a.bias", "ours.b"]
    assert converted.weights["ours.b"].tolist() == [[0, 2], [1, 3]]
    assert converted.left_out == {"frozen": ["text.x", "text.count"], "counts": ["z.count"]}
    assert converted.unknown == ["z"] and converted.missing == ["ours.c"]


def test_tensors_are_copies():
    state = whole()
    weights = convert(state, PLAIN).weights
    weights["ours.a.weight"].zero_()
    assert state["a.weight"].eq(1).all()


def test_names_of_a_distributed_model():
    state = {f"module.{name}": tensor for name, tensor in whole(c=torch.ones(1)).items()}
    assert find_kind(state, [PLAIN]) is PLAIN
    converted = convert(state, PLAIN)
    assert "ours.c" in converted.weights and not converted.missing and not converted.unknown


def test_missing_tensors_are_told():
    state = whole()
    del state["a.bias"], state["b"]
    with pytest.raises(UserError, match="lacks 2 of the 4 tensors of kind plain, a.bias, b: is it whole"):
        convert(state, PLAIN)


def test_other_shapes_are_told():
    with pytest.raises(UserError, match=r"b has shape \(5,\), which no file of kind plain has"):
        convert(whole(b=torch.zeros(5)), PLAIN)


def test_another_backbone_is_refused():
    with pytest.raises(UserError, match=r"backbone has 1 tensors that kind plain does not know, backbone\.layer3"):
        convert(whole(**{"backbone.layer3.22.w": torch.ones(1)}), PLAIN)


def test_layers_of_several_files_are_told():
    rules = [Rule("w", "res2.conv1.weight"), Rule("n", "res2.conv1.norm.weight")]
    kind = Kind(name="r", what="", arguments="", fits=lambda state: True, rules=rules, left_out={})
    convert({"w": torch.ones(4, 3, 1, 1), "n": torch.ones(4)}, kind)
    with pytest.raises(UserError, match=r"res2\.conv1\.norm\.weight has 5 channels, but the convolution before it 4"):
        convert({"w": torch.ones(4, 3, 1, 1), "n": torch.ones(5)}, kind)


def test_files_of_no_kind():
    with pytest.raises(UserError, match=r"no kind .*\(plain\): it holds q, r\.$"):
        find_kind({"q": torch.ones(1), "r": torch.ones(1)}, [PLAIN])
    with pytest.raises(UserError, match="set MODEL.WEIGHTS to it as it is"):
        find_kind({"roi_heads.box_predictor.cls_score.zs_weight": torch.ones(1)}, KINDS.values())
    with pytest.raises(UserError, match="set MODEL.IMAGE_ENCODER.PRETRAINED to it as it is"):
        find_kind({"visual.conv1.weight": torch.ones(1)}, KINDS.values())


def test_long_lists_are_cut():
    assert listed("abcd") == "a, b, c, d"
    assert listed("abcdef") == "a, b, c, d and 2 more"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_tensor_of_ours_comes_from_one_of_theirs(name):
    ours = [row.ours for row in KINDS[name].table.values()]
    assert len(ours) == len(set(ours)) and KINDS[name].name == name
