"""Text half of an open_clip model: CLIP's causal transformer, read at the end-of-text token.

Shapes: B texts, L tokens of the longest, W width of the transformer, D dimensions of an embedding.
"""

import json
import logging

import open_clip
import torch
from torch import Tensor

from clim.errors import UserError
from clim.text.base import TextTower
from clim.text.clip_weights import TextWeights, find_weights, read_text_weights

logger = logging.getLogger(__name__)

# Only the text half is kept, so the image half is built as small as open_clip allows.
_STUB_IMAGE_HALF = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}


class OpenClipTower(TextTower):
    """CLIP text tower; its state dict carries OpenAI's (and Detic's ``text_encoder.*``) names.

    Over-long texts are cut to the context length with the end-of-text token kept, as in the CLIM
    release; official Detic takes a random window of 77 tokens instead. Sequences are cut behind the
    longest text of a batch: under the causal mask nothing behind the end-of-text token is ever read.
    """

    def __init__(self, *, name: str, pretrained: str):
        """``name``: open_clip model; ``pretrained``: tag, file, "hf-hub:..." or "" for random weights."""
        config = _plain_config(name)
        found = find_weights(name=name, pretrained=pretrained) if pretrained else None
        super().__init__(architecture=json.dumps(_text_part(config), sort_keys=True))
        model = open_clip.CLIP(**_text_part(config), vision_cfg=_STUB_IMAGE_HALF)
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.transformer = model.transformer
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)
        self.dim = self.text_projection.shape[1]
        self._tokenizer = open_clip.get_tokenizer(name)
        if found:
            path, quick_gelu = found
            weights = read_text_weights(path)
            self._load(weights, source=f"{path} (MODEL.TEXT.PRETRAINED)", name=name)
            _warn_of_activation(name, config, weights.quick_gelu if quick_gelu is None else quick_gelu)
        else:
            logger.warning("The text tower %s has random weights: its embeddings mean nothing.", name)
        self.freeze()

    def tokenize(self, texts) -> list[list[int]]:
        ids = self._tokenizer(list(texts))
        ends = ids.argmax(dim=1)  # the end-of-text token has the highest id
        return [row[: end + 1].tolist() for row, end in zip(ids, ends, strict=True)]

    def features(self, tokens: list[list[int]]) -> Tensor:
        rows = [torch.tensor(row) for row in tokens]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        ends = torch.tensor([len(row) - 1 for row in tokens], device=self.device)
        return self.features_of_words(self.token_embedding(ids), ends)

    def features_of_words(self, words: Tensor, ends: Tensor) -> Tensor:
        """(B, D) from word embeddings ``words`` (B, L, W) and the places ``ends`` (B,) of their last token.

        Differentiable with respect to ``words``; the embeddings are not normalised.
        """
        length = words.shape[1]
        x = words + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        x = x[torch.arange(len(x), device=x.device), ends]
        return self.ln_final(x) @ self.text_projection

    def _load(self, weights: TextWeights, *, source: str, name: str) -> None:
        own = self.state_dict()
        missing = [key for key in own if key not in weights.state]
        surplus = [k for k in weights.state if k.startswith("transformer.resblocks.") and k not in own]
        other = [k for k in own if k not in missing and own[k].shape != weights.state[k].shape]
        if wrong := missing + surplus + other:
            raise UserError(
                f"The weights in {source} do not fit the text tower of {name} ({len(wrong)} differ, "
                f"first {wrong[0]}): name the open_clip model that they belong to in MODEL.TEXT.NAME."
            )
        self.load_state_dict({key: weights.state[key] for key in own})


def _plain_config(name: str) -> dict:
    """open_clip's config of ``name``; UserError where the text half is not CLIP's own transformer."""
    config = open_clip.get_model_config(name)
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


def _text_part(config: dict) -> dict:
    return {
        "embed_dim": config["embed_dim"],
        "quick_gelu": config.get("quick_gelu", False),
        "text_cfg": config["text_cfg"],
    }


def _warn_of_activation(name: str, config: dict, trained_with: bool | None) -> None:
    computes = _text_part(config)["quick_gelu"]
    if trained_with is None or trained_with == computes:
        return
    twin = name.removesuffix("-quickgelu") if computes else f"{name}-quickgelu"
    logger.warning(
        "These CLIP weights were trained with %s, but the model %s computes %s: set MODEL.TEXT.NAME to %s.",
        *("QuickGELU", name, "exact GELU", twin) if trained_with else ("exact GELU", name, "QuickGELU", twin),
    )
