"""Text half of an open_clip model: CLIP's causal transformer, read at the end-of-text token.

Shapes: as in base.py, L tokens of the longest; W = H width of the transformer.
"""

import json

import open_clip
import torch
from torch import Tensor

from clim.errors import UserError
from clim.text.base import TextTower, WordFeatures
from clim.text.clip_config import clip_config
from clim.text.clip_weights import TEXT, load_half

# Only the text half is kept, so the image half is built as small as open_clip allows.
_STUB_IMAGE_HALF = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}


class OpenClipTower(TextTower):
    """CLIP text tower; its state dict carries OpenAI's (and Detic's ``text_encoder.*``) names.

    Over-long texts are cut to the context length with the end-of-text token kept, as in the CLIM
    release; official Detic takes a random window of 77 tokens instead. Sequences are cut behind the
    longest text of a batch: under the causal mask nothing behind the end-of-text token is ever read.
    """

    def __init__(self, *, name: str, pretrained: str):
        """``name``: open_clip model or json; ``pretrained``: tag, file, "hf-hub:..." or "" for random weights."""
        config = _plain_config(name)
        text_part = {
            "embed_dim": config["embed_dim"],
            "quick_gelu": config.get("quick_gelu", False),
            "text_cfg": config["text_cfg"],
        }
        super().__init__(architecture=json.dumps(text_part, sort_keys=True))
        model = open_clip.CLIP(**text_part, vision_cfg=_STUB_IMAGE_HALF)
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.transformer = model.transformer
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)
        self.hidden_dim, self.dim = self.text_projection.shape
        self._tokenizer = open_clip.SimpleTokenizer(
            context_length=model.context_length, **config["text_cfg"].get("tokenizer_kwargs", {})
        )
        self.context = model.context_length
        self.ends = (self._tokenizer.sot_token_id, self._tokenizer.eot_token_id)
        load_half(self, TEXT, name=name, pretrained=pretrained, quick_gelu=text_part["quick_gelu"])
        self.freeze()

    def tokenize(self, texts) -> list[list[int]]:
        """Ids from the start to the end token."""
        ids = self._tokenizer(list(texts))
        ends = ids.argmax(dim=1)  # the end-of-text token has the highest id
        return [row[: end + 1].tolist() for row, end in zip(ids, ends, strict=True)]

    @property
    def word_embeddings(self) -> Tensor:
        """(V, W), a row for each token."""
        return self.token_embedding.weight

    def features_of_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """hidden: the last token's output of the last block; embedding: ``ln_final``, then projected."""
        length = words.shape[1]
        x = words + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        hidden = x[torch.arange(len(x), device=x.device), lengths - 1].float()
        with torch.autocast(hidden.device.type, enabled=False):  # features stay float32 (baron §5)
            return WordFeatures(hidden, self.ln_final(hidden) @ self.text_projection)


def _plain_config(name: str) -> dict:
    """open_clip's config of ``name``; UserError where the text half is not CLIP's own transformer."""
    config = clip_config(name, TEXT.name_key)
    text = config["text_cfg"]
    plain = (
        not {"hf_model_name", "hf_tokenizer_name", "embed_cls", "no_causal_mask", "proj_bias"} & text.keys()
        and text.get("pool_type", "argmax") == "argmax"
        and text.get("proj_type", "linear") == "linear"
    )
    if not plain:
        raise UserError(
            f"The text half of {name} (MODEL.TEXT.NAME) is not CLIP's causal transformer, and no other is "
            "supported: choose a CLIP model such as ViT-B-32-quickgelu or RN50x64-quickgelu."
        )
    return config
