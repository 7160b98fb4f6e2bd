"""The multimodal transformer, pair by pair and head by head from its weights; both ways of masking."""

import math

import pytest
import torch
from torch.nn import functional as F

from clim.methods.multimodal import MultimodalTransformer

B, L, N, DIM, HEADS, LAYERS, VOCABULARY = 3, 4, 5, 16, 2, 2, 11
TOKENS, LOCATIONS = [4, 2, 3], [5, 1, 4]


def make(mask_padding, dropout=0.1):
    torch.manual_seed(0)
    model = MultimodalTransformer(
        dim=DIM, vocabulary=VOCABULARY, layers=LAYERS, heads=HEADS, dropout=dropout, mask_padding=mask_padding
    )
    for weight in model.parameters():  # not near zero, and biases that matter
        weight.data += 0.3 * torch.randn_like(weight)
    return model.eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    tokens, locations = (torch.randn(B, n, DIM, generator=generator) for n in (L, N))
    is_token, is_location = (
        torch.arange(n) < torch.tensor(counts)[:, None] for n, counts in ((L, TOKENS), (N, LOCATIONS))
    )
    return tokens, is_token, locations, is_location, torch.rand(B, N, 2, generator=generator)


def slow_pair(state, tokens, locations, place, bias):
    """Features (S, D) of one sequence; ``bias`` (S,) is added to every query's scores."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-12).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    visual = linear("visual_emb.image_embeddings", locations) + linear("visual_emb.image_location_embeddings", place)
    x = torch.cat([tokens, norm("visual_emb.LayerNorm", visual)])
    for layer in range(LAYERS):
        name, heads = f"encoder.layer.{layer}", []
        q, k, v = (linear(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        for head in torch.arange(DIM).view(HEADS, -1):
            scores = q[:, head] @ k[:, head].T / math.sqrt(len(head)) + bias
            heads.append(scores.softmax(1) @ v[:, head])
        x = norm(
            f"{name}.attention.output.LayerNorm", x + linear(f"{name}.attention.output.dense", torch.cat(heads, 1))
        )
        inner = F.gelu(linear(f"{name}.intermediate.dense", x))
        x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", inner))
    return x


@pytest.mark.parametrize("mask_padding", [True, False])
def test_every_pair_is_read_alone(inputs, mask_padding):
    """Without padding, or as the official code: with padding, its mask of ones and zeros added to the scores."""
    model = make(mask_padding)
    state, (tokens, is_token, locations, is_location, place) = model.state_dict(), inputs
    scores, matched = model(*inputs)
    assert scores.shape == (B, B) and matched.shape == (B, L, DIM)
    for i in range(B):
        for j in range(B):
            words, real = is_token[i], is_location[j]
            bias = 0.0 if mask_padding else torch.cat([words, real]).float()
            if not mask_padding:
                words, real = torch.ones_like(words), torch.ones_like(real)
            features = slow_pair(state, tokens[i][words], locations[j][real], place[j][real], bias)
            pooled = torch.tanh(features[0] @ state["pooler.dense.weight"].T + state["pooler.dense.bias"])
            distances = pooled @ state["heads.bi_seq_relationship.weight"].T + state["heads.bi_seq_relationship.bias"]
            torch.testing.assert_close(scores[i, j], -distances[0], rtol=1e-3, atol=1e-4)
            if i == j:
                torch.testing.assert_close(matched[i][words], features[: words.sum()], rtol=1e-3, atol=1e-4)


def test_words_are_predicted_by_the_text_towers_own_rows():
    model = make(mask_padding=True)
    features, table = torch.randn(2, DIM), torch.randn(VOCABULARY, DIM)
    state = model.state_dict()
    dense = features @ state["heads.predictions.transform.dense.weight"].T
    hidden = F.gelu(dense + state["heads.predictions.transform.dense.bias"])
    norm = [state[f"heads.predictions.transform.LayerNorm.{part}"] for part in ("weight", "bias")]
    expected = F.layer_norm(hidden, (DIM,), *norm, eps=1e-12) @ table.T + state["heads.predictions.bias"]
    torch.testing.assert_close(model.heads.predictions(features, table), expected)
    assert model.heads.predictions(features[:0], table).shape == (0, VOCABULARY)


def test_the_start_is_berts():
    model = MultimodalTransformer(dim=768, vocabulary=50, layers=1, heads=8, dropout=0.1, mask_padding=False)
    # Locations' layers are no part of BERT: they start as any linear layer, uniformly within ± 1 / √inputs.
    places = model.visual_emb.image_location_embeddings
    assert places.weight.std().item() == pytest.approx(2**-0.5 / 3**0.5, rel=0.05) and places.bias.any()
    for name, value in model.named_parameters():
        if name.startswith("visual_emb"):
            continue
        if value.ndim == 2 and value.numel() > 10_000:
            assert value.std().item() == pytest.approx(0.02, rel=0.02), name
        elif name.endswith("bias"):
            assert not value.any(), name


def test_dropout_in_training_only(inputs):
    for dropout, training, same in ((0.1, False, True), (0.1, True, False), (0.0, True, True)):
        model = make(mask_padding=False, dropout=dropout).train(training)
        assert torch.equal(model(*inputs)[0], model(*inputs)[0]) is same
