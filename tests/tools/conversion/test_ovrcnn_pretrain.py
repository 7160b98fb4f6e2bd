"""OVR-CNN's multimodal transformer: converted, it scores pairs as the official one does."""

import math

import torch
from torch.nn import functional as F

from clim.methods.multimodal import MultimodalTransformer
from conversion.rules import KINDS

DIM, HEADS, LAYERS, VOCABULARY = 16, 2, 6, 9
PREFIX = "mmss_heads.TransformerHead."


def official_state():
    """Random tensors under the official names and shapes."""
    random, state = torch.Generator().manual_seed(0), {}

    def linear(name, rows=DIM, columns=DIM):
        state[f"{PREFIX}{name}.weight"] = torch.randn(rows, columns, generator=random) / columns**0.5
        state[f"{PREFIX}{name}.bias"] = 0.1 * torch.randn(rows, generator=random)

    def norm(name):
        state[f"{PREFIX}{name}.weight"] = 0.5 + torch.rand(DIM, generator=random)
        state[f"{PREFIX}{name}.bias"] = 0.1 * torch.randn(DIM, generator=random)

    linear("visual_emb.image_embeddings")
    linear("visual_emb.image_location_embeddings", DIM, 2)
    norm("visual_emb.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            linear(f"{layer}attention.self.{part}")
        for part in ("attention.output", "intermediate", "output"):
            linear(f"{layer}{part}.dense")
        for part in ("attention.output", "output"):
            norm(f"{layer}{part}.LayerNorm")
    linear("pooler.dense")
    linear("heads.bi_seq_relationship", 2)
    linear("heads.predictions.transform.dense")
    norm("heads.predictions.transform.LayerNorm")
    state[f"{PREFIX}heads.predictions.bias"] = torch.randn(VOCABULARY, generator=random)
    return state


class Slow:
    """The official forward of one caption (L, D) with one image's cells (N, D), masks of ones and zeros."""

    def __init__(self, state):
        self.state = state

    def linear(self, name, x):
        return F.linear(x, self.state[f"{PREFIX}{name}.weight"], self.state[f"{PREFIX}{name}.bias"])

    def norm(self, name, x):
        weight, bias = self.state[f"{PREFIX}{name}.weight"], self.state[f"{PREFIX}{name}.bias"]
        return F.layer_norm(x, (DIM,), weight, bias, eps=1e-12)

    def features(self, tokens, is_token, cells, is_cell, place):
        visual = self.linear("visual_emb.image_embeddings", cells)
        visual = visual + self.linear("visual_emb.image_location_embeddings", place)
        x = torch.cat([tokens, self.norm("visual_emb.LayerNorm", visual)])
        mask = torch.cat([is_token, is_cell]).float()
        for i in range(LAYERS):
            layer, mixed = f"encoder.layer.{i}.", []
            q, k, v = (self.linear(f"{layer}attention.self.{part}", x) for part in ("query", "key", "value"))
            for head in range(HEADS):
                part = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
                scores = q[:, part] @ k[:, part].T / math.sqrt(DIM // HEADS) + mask
                mixed.append(scores.softmax(1) @ v[:, part])
            y = self.linear(f"{layer}attention.output.dense", torch.cat(mixed, 1))
            x = self.norm(f"{layer}attention.output.LayerNorm", x + y)
            y = self.linear(f"{layer}output.dense", F.gelu(self.linear(f"{layer}intermediate.dense", x)))
            x = self.norm(f"{layer}output.LayerNorm", x + y)
        return x

    def distance(self, features):
        pooled = self.linear("pooler.dense", features[0]).tanh()
        return self.linear("heads.bi_seq_relationship", pooled)[0]

    def words(self, features, embeddings):
        x = F.gelu(self.linear("heads.predictions.transform.dense", features))
        x = self.norm("heads.predictions.transform.LayerNorm", x)
        return x @ embeddings.T + self.state[f"{PREFIX}heads.predictions.bias"]


@torch.no_grad()
def test_pairs_and_words_are_scored_as_by_the_official_transformer():
    state = official_state()
    rows = {name: row for name, row in KINDS["ovrcnn-pretrain"].table.items() if name.startswith(PREFIX)}
    assert set(rows) == set(state)
    ours = MultimodalTransformer(
        dim=DIM, vocabulary=VOCABULARY, layers=LAYERS, heads=HEADS, dropout=0.1, mask_padding=False
    ).eval()
    weights = {row.ours.removeprefix("method.transformer."): row.change(state[name]) for name, row in rows.items()}
    ours.load_state_dict(weights)

    torch.manual_seed(1)
    tokens, cells, place = torch.randn(2, 5, DIM), torch.randn(2, 3, DIM), torch.rand(2, 3, 2)
    is_token = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    is_cell = torch.tensor([[True] * 3, [True, True, False]])
    scores, matched = ours(tokens, is_token, cells, is_cell, place)
    slow = Slow(state)
    for i in range(2):
        for j in range(2):
            features = slow.features(tokens[i], is_token[i], cells[j], is_cell[j], place[j])
            torch.testing.assert_close(scores[i, j], -slow.distance(features), rtol=1e-4, atol=1e-4)
            if i == j:
                torch.testing.assert_close(matched[i], features[:5], rtol=1e-4, atol=1e-4)
                embeddings = torch.randn(VOCABULARY, DIM)
                expected = slow.words(features[:5], embeddings)
                torch.testing.assert_close(ours.word_logits(matched[i], embeddings), expected, rtol=1e-4, atol=1e-4)
