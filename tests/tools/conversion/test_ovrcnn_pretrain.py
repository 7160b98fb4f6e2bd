"""OVR-CNN's multimodal transformer: the converted one gives the official scores of pairs."""

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertConfig, BertEncoder, BertPooler, BertPredictionHeadTransform

from clim.methods.multimodal import MultimodalTransformer
from conversion.rules import KINDS

DIM, HEADS, LAYERS, VOCABULARY = 16, 2, 6, 9
PREFIX = "mmss_heads.TransformerHead."


class Official(nn.Module):
    """The official names and forward: BERT's own layers, behind an embedding of the image's locations.

    One caption (L, D) with one image's locations (N, D); masks of ones and zeros are added to the attention.
    """

    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": DIM, "intermediate_size": DIM, "num_hidden_layers": LAYERS}
        config = BertConfig(**sizes, num_attention_heads=HEADS, attn_implementation="eager")
        self.encoder, self.pooler = BertEncoder(config), BertPooler(config)
        self.visual_emb = nn.ModuleDict(
            {
                "image_embeddings": nn.Linear(DIM, DIM),
                "image_location_embeddings": nn.Linear(2, DIM),
                "LayerNorm": nn.LayerNorm(DIM, eps=1e-12),
            }
        )
        predictions = nn.Module()
        predictions.transform = BertPredictionHeadTransform(config)
        predictions.bias = nn.Parameter(torch.randn(VOCABULARY))
        self.heads = nn.ModuleDict({"bi_seq_relationship": nn.Linear(DIM, 2), "predictions": predictions})
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape) / (weight.shape[-1] ** 0.5 if weight.ndim > 1 else 4)

    def features(self, tokens, is_token, locations, is_location, place):
        embed = self.visual_emb
        visual = embed["image_embeddings"](locations) + embed["image_location_embeddings"](place)
        x = torch.cat([tokens, embed["LayerNorm"](visual)])
        mask = torch.cat([is_token, is_location]).float()
        return self.encoder(x[None], attention_mask=mask[None, None, None])[0][0]

    def distance(self, features):
        return self.heads["bi_seq_relationship"](self.pooler(features[None]))[0, 0]

    def words(self, features, embeddings):
        head = self.heads["predictions"]
        return head.transform(features) @ embeddings.T + head.bias


@torch.no_grad()
def test_pairs_and_words_are_scored_as_by_the_official_transformer():
    torch.manual_seed(0)
    official = Official().eval()
    state = {PREFIX + name: tensor for name, tensor in official.state_dict().items()}
    rules = {name: rule for name, rule in KINDS["ovrcnn-pretrain"].table.items() if name.startswith(PREFIX)}
    assert set(rules) == set(state)
    ours = MultimodalTransformer(
        dim=DIM, vocabulary=VOCABULARY, layers=LAYERS, heads=HEADS, dropout=0.1, mask_padding=False
    ).eval()
    weights = {rule.ours.removeprefix("method.transformer."): rule.change(state[name]) for name, rule in rules.items()}
    ours.load_state_dict(weights)

    tokens, locations, place = torch.randn(2, 5, DIM), torch.randn(2, 3, DIM), torch.rand(2, 3, 2)
    is_token = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    is_location = torch.tensor([[True] * 3, [True, True, False]])
    scores, matched = ours(tokens, is_token, locations, is_location, place)
    embeddings = torch.randn(VOCABULARY, DIM)
    for i in range(2):
        for j in range(2):
            features = official.features(tokens[i], is_token[i], locations[j], is_location[j], place[j])
            torch.testing.assert_close(scores[i, j], -official.distance(features), rtol=1e-4, atol=1e-4)
            if i == j:
                torch.testing.assert_close(matched[i], features[:5], rtol=1e-4, atol=1e-4)
                expected = official.words(features[:5], embeddings)
                torch.testing.assert_close(
                    ours.heads.predictions(matched[i], embeddings), expected, rtol=1e-4, atol=1e-4
                )
