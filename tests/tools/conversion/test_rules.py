"""Changes of layout, one number at a time; every kind's rules and command."""

import shlex
from pathlib import Path

import pytest
import torch

from clim.engine import load_config
from conversion.rules import KINDS, as_scalar, as_vector, foreground_box, sizes_first, text_matrix, without_eps


@pytest.mark.parametrize("values", [1, 4])
@pytest.mark.parametrize("tail", [(), (6, 1, 1)], ids=["bias", "weight"])
def test_anchors_by_size_then_ratio(values, tail):
    rows = torch.randn(15 * values, *tail)
    changed = sizes_first(values)(rows)
    for size in range(5):
        for ratio in range(3):
            for value in range(values):
                theirs = rows[(ratio * 5 + size) * values + value]
                assert torch.equal(changed[(size * 3 + ratio) * values + value], theirs)
    with pytest.raises(RuntimeError):  # another number of anchors
        sizes_first(1)(torch.zeros(9))


@pytest.mark.parametrize("tail", [(), (6,)], ids=["bias", "weight"])
def test_the_box_of_the_object(tail):
    rows = torch.randn(8, *tail)
    changed = foreground_box(rows)
    assert torch.equal(changed, rows[4:8])
    assert changed.untyped_storage().nbytes() == changed.numel() * 4  # a file would store the whole of a view
    with pytest.raises(RuntimeError):
        foreground_box(torch.zeros(4, *tail))


def test_variance_that_detectron2_adds_to():
    theirs, x = torch.tensor([1.0, 2e-4, 0.3]), torch.randn(5, 3)
    torch.testing.assert_close(x / (without_eps(theirs) + 1e-5).sqrt(), x / theirs.sqrt())


def test_text_matrix_and_scalars():
    matrix = text_matrix(torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]], dtype=torch.float16))
    torch.testing.assert_close(matrix, torch.tensor([[0.6, 0, -1, 0], [0.8, 1, 0, 0]]), atol=1e-6, rtol=0)
    assert matrix.dtype == torch.float32
    for value in (torch.tensor(-20.0), torch.tensor([-20.0])):
        assert as_scalar(value).shape == () and as_vector(value).tolist() == [-20]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_has_one_rule_a_tensor_and_a_command_with_a_config(kind, monkeypatch):
    ours = [row.ours for row in kind.table.values()]
    assert len(ours) == len(set(ours))
    monkeypatch.chdir(Path(__file__).resolve().parents[3])
    words = shlex.split(kind.arguments)
    config = words.index("--config-file") + 1
    cfg = load_config(words[config], [*words[config + 1 :], "MODEL.WEIGHTS", "ours.pth"])
    assert cfg.MODEL.WEIGHTS == "ours.pth"
