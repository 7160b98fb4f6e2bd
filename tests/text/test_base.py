"""The contract of towers, of a CLIP's and of a BERT: batches, words without text, identity."""

import pytest
import torch
from torch.nn.functional import normalize

from clim.errors import UserError
from clim.text.towers import build_text_tower


@pytest.fixture(scope="module", params=["tiny-clip-quickgelu", "minilm"])
def any_tower(request):
    return build_text_tower(name=request.param)


def test_is_frozen_and_stays_in_evaluation_mode(any_tower):
    model = torch.nn.ModuleList([any_tower])
    model.train()
    assert model.training
    assert not any(module.training for module in any_tower.modules())
    assert not any(parameter.requires_grad for parameter in any_tower.parameters())


def test_unit_norm_float32_without_graph(any_tower, phrases):
    embeddings = any_tower.encode(phrases)
    assert embeddings.shape == (4, any_tower.dim) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    assert not embeddings.requires_grad and not embeddings.is_inference()


def test_no_text(any_tower):
    assert any_tower.encode([]).shape == (0, any_tower.dim)


def test_one_text_instead_of_a_list_is_refused(any_tower):
    with pytest.raises(TypeError, match="list"):
        any_tower.encode("a dog")


def test_batched_equals_single_in_the_given_order(any_tower, phrases):
    single = torch.cat([any_tower.encode([text]) for text in phrases])
    torch.testing.assert_close(any_tower.encode(phrases), single, atol=1e-6, rtol=0)
    torch.testing.assert_close(any_tower.encode(phrases, batch_size=3), single, atol=1e-6, rtol=0)


def test_autocast_around_it_changes_nothing(any_tower, phrases):
    with torch.autocast("cpu", torch.bfloat16):
        inside = any_tower.encode(phrases)
    assert torch.equal(inside, any_tower.encode(phrases))


def test_over_long_texts_are_read_from_the_start(any_tower):
    long = "dog " * 1000
    assert torch.equal(any_tower.encode([long]), any_tower.encode([long + "cat"]))


# ---- words ---------------------------------------------------------------------------------------


def inner_words(tower, texts):
    """Word embeddings (B, L, W) of what stands between each text's start and end, and their numbers (B,)."""
    inner = [ids[1:-1] for ids in tower.tokenize(texts)]
    length = max(len(ids) for ids in inner)
    words = torch.full((len(texts), length, tower.word_dim), 7.0)  # beyond a text: must not be read
    for row, ids in zip(words, inner, strict=True):
        row[: len(ids)] = tower.word_embeddings[ids]
    return words, torch.tensor([len(ids) for ids in inner])


def test_words_of_a_text_are_read_as_the_text(any_tower, phrases):
    features = any_tower.encode_words(*inner_words(any_tower, phrases))
    torch.testing.assert_close(normalize(features.embedding), any_tower.encode(phrases), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        normalize(features.hidden), any_tower.encode_hidden(phrases), atol=1e-6, rtol=0
    )
    assert features.hidden.shape == (4, any_tower.hidden_dim)
    assert (features.embedding.norm(dim=1) - 1).abs().min() > 1e-3  # not normalised


def test_a_batch_of_words_equals_its_sequences_one_by_one(any_tower, phrases):
    words, lengths = inner_words(any_tower, phrases)
    together = any_tower.encode_words(words, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = any_tower.encode_words(words[b : b + 1, :n], lengths[b : b + 1])
        for all_of, one in zip(together, alone, strict=True):
            torch.testing.assert_close(all_of[b], one[0], atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_words_that_are_read_and_no_weight(any_tower):
    words = torch.randn(2, 5, any_tower.word_dim, requires_grad=True)
    features = any_tower.encode_words(words, torch.tensor([5, 3]))
    (normalize(features.hidden)[:, 0] + normalize(features.embedding)[:, 0]).sum().backward()
    assert words.grad[0].any(1).all() and words.grad[1, :3].any(1).all()
    assert not words.grad[1, 3:].any()
    assert all(p.grad is None for p in any_tower.parameters())


def test_no_sequence(any_tower):
    for length in (0, 3):
        features = any_tower.encode_words(
            torch.zeros(0, length, any_tower.word_dim), torch.zeros(0, dtype=torch.int64)
        )
        assert features.hidden.shape == (0, any_tower.hidden_dim)
        assert features.embedding.shape == (0, any_tower.dim)


def test_more_words_than_it_can_read_are_told(tower):
    assert tower.context == 20
    tower.encode_words(torch.zeros(1, 18, 16), torch.tensor([18]))
    with pytest.raises(
        UserError, match="19 pseudo words is longer than the 18 .*MODEL.METHOD.BARON.PROPOSALS"
    ):
        tower.encode_words(torch.zeros(1, 19, 16), torch.tensor([19]))


# ---- fingerprint ---------------------------------------------------------------------------------


def test_fingerprint_is_stable(tower):
    assert tower.fingerprint == build_text_tower(name="tiny-clip-quickgelu").fingerprint
    assert len(tower.fingerprint) == 32


def test_fingerprint_sees_one_bit_of_one_weight(tower):
    other = build_text_tower(name="tiny-clip-quickgelu")
    weight = other.token_embedding.weight.data.view(torch.int32)
    weight[12345, 7] ^= 1
    assert other.fingerprint != tower.fingerprint


def test_fingerprint_sees_the_order_of_weights(tower):
    other = build_text_tower(name="tiny-clip-quickgelu")
    other.token_embedding.weight.data = other.token_embedding.weight.data.flip(0)
    assert other.fingerprint != tower.fingerprint


def test_fingerprint_sees_the_activation(tower):
    other = build_text_tower(name="tiny-clip")
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), other.parameters(), strict=True))
    assert other.fingerprint != tower.fingerprint
