"""OV-RCNN's multimodal transformer: captions and images read together, for image-text matching and hidden words.

Shapes: B captions and B images, L tokens, N locations, D width, V tokens that the text tower knows. Parameters have
the names of official OVR-CNN's ``TransformerHead.backbone`` and of Hugging Face's BERT (ovrcnn §1.4, §4).
"""

import torch
from torch import Tensor, nn


class MultimodalTransformer(nn.Module):
    """BERT's encoder over [caption; locations], once for every caption with every image; ``dim`` D, ``vocabulary`` V.

    ``mask_padding`` hides padding from attention. Without it, as in the official code, a mask of ones and zeros is
    *added* to the attention scores, so padding is read, and all other tokens count e times as much.
    """

    def __init__(self, *, dim: int, vocabulary: int, layers: int, heads: int, dropout: float, mask_padding: bool):
        from transformers import BertConfig  # takes seconds
        from transformers.models.bert.modeling_bert import BertEncoder, BertPooler

        super().__init__()
        config = BertConfig(
            hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=dim,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, attn_implementation="sdpa",
        )  # fmt: skip
        self.mask_padding = mask_padding
        self.visual_emb = VisualEmbedding(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)
        self.heads = nn.Module()
        self.heads.bi_seq_relationship = nn.Linear(dim, 2)  # the second output is unused, as in the official code
        self.heads.predictions = WordPrediction(config, vocabulary)
        for part in (self.encoder, self.pooler, self.heads):  # not the visual embedding, as in the official code
            for linear in (module for module in part.modules() if isinstance(module, nn.Linear)):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def forward(
        self, tokens: Tensor, is_token: Tensor, locations: Tensor, is_location: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, B) scores of caption i with image j, and (B, L, D) features of the tokens beside their own image.

        ``tokens`` (B, L, D) are contextual; ``place`` (B, N, 2) has x and y of ``locations`` (B, N, D) in the image,
        0 to 1. ``is_token`` (B, L) and ``is_location`` (B, N) are False for padding.
        """
        count, length = is_token.shape
        visual = self.visual_emb(locations, place)
        # pair i · B + j: caption i, image j
        sequences = torch.cat([tokens.repeat_interleave(count, dim=0), visual.repeat(count, 1, 1)], dim=1)
        real = torch.cat([is_token.repeat_interleave(count, dim=0), is_location.repeat(count, 1)], dim=1)
        features = self.encoder(sequences, self.attention_bias(real)).last_hidden_state
        distances = self.heads.bi_seq_relationship(self.pooler(features))[:, 0].view(count, count)
        return -distances, features[:: count + 1, :length]

    def attention_bias(self, real: Tensor) -> Tensor:
        """(P, 1, 1, S) what is added to the attention scores of sequences (P, S)."""
        bias = real.float()[:, None, None, :]
        return (1 - bias) * torch.finfo(bias.dtype).min if self.mask_padding else bias


class VisualEmbedding(nn.Module):
    """Turns a location into a token: LayerNorm(Linear(location) + Linear(place)), then dropout."""

    def __init__(self, config):
        super().__init__()
        self.image_embeddings = nn.Linear(config.hidden_size, config.hidden_size)
        self.image_location_embeddings = nn.Linear(2, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, locations: Tensor, place: Tensor) -> Tensor:
        return self.dropout(self.LayerNorm(self.image_embeddings(locations) + self.image_location_embeddings(place)))


class WordPrediction(nn.Module):
    """BERT's language-model head: logits (M, V) of token features (M, D) with the text tower's frozen words (V, D)."""

    def __init__(self, config, vocabulary: int):
        from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, features: Tensor, word_embeddings: Tensor) -> Tensor:
        return self.transform(features) @ word_embeddings.T + self.bias
