"""open_clip's models: the text half as a tower, the image half as a module, and the weights of both.

:mod:`clim.checkpoints` reads the files: open_clip's own loader needs both halves, does not know detectors' files, and
resizes positions silently. Shapes as in tower.py; W = H.
"""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from clim.checkpoints.keys import IMAGE, TEXT, Half, read_half
from clim.checkpoints.reading import require_finite
from clim.errors import UserError, telling
from clim.files import read_json, resolve
from clim.text.tower import TextTower, WordFeatures

logger = logging.getLogger(__name__)

ACTIVATIONS = {True: "QuickGELU", False: "exact GELU"}  # by a config's quick_gelu
_HUB = "hf-hub:"
_TEXT_KIND = ("hf_model_name", "hf_tokenizer_name", "embed_cls", "no_causal_mask", "proj_bias", "pool_type",
              "proj_type")  # fmt: skip
# The half that is not kept is built as small as open_clip allows.
_STUB_IMAGE_HALF = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}
_STUB_TEXT_HALF = {"layers": 1, "width": 8, "heads": 1, "context_length": 1, "vocab_size": 1}

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 13)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 7)]


class _Half(msgspec.Struct):
    width: _Size = 1
    layers: _Count | list[_Count] = 1  # a list for a ResNet


class _Config(msgspec.Struct):
    """What a json of a model must have; the largest known ones have 64 layers and a width of 1,792."""

    embed_dim: _Size
    vision_cfg: _Half
    text_cfg: _Half


class OpenClipTower(TextTower):
    """CLIP's causal transformer, read at the end-of-text token. Its weights have OpenAI's names, as in Detic's files.

    Cuts long texts to the context and keeps the end-of-text token, as the CLIM release; official Detic takes a random
    window of 77 tokens. A batch ends behind its longest text, as the causal mask hides later tokens.
    """

    def __init__(self, *, name: str, pretrained: str):
        config = clip_config(name, TEXT.name_key)
        text_part = {key: config[key] for key in ("embed_dim", "quick_gelu", "text_cfg")}
        super().__init__(architecture=json.dumps(text_part, sort_keys=True))
        with _built_from(name, TEXT):
            model = open_clip.CLIP(**text_part, vision_cfg=_STUB_IMAGE_HALF)
        for part in ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection"):
            setattr(self, part, getattr(model, part))
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)
        self.hidden_dim, self.dim = self.text_projection.shape
        options = config["text_cfg"].get("tokenizer_kwargs", {})
        self._tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length, **options)
        self.context = model.context_length
        self.ends = (self._tokenizer.sot_token_id, self._tokenizer.eot_token_id)
        load_half(self, TEXT, name=name, pretrained=pretrained, quick_gelu=config["quick_gelu"])
        self.freeze()

    def tokenize(self, texts) -> list[list[int]]:
        ids = self._tokenizer(list(texts))
        ends = ids.argmax(dim=1)  # the end-of-text token has the highest id
        return [row[: end + 1].tolist() for row, end in zip(ids, ends, strict=True)]

    @property
    def word_embeddings(self) -> Tensor:
        return self.token_embedding.weight

    def features_of_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """hidden: the end token's output of the last block; embedding: ``ln_final`` and the projection of it."""
        length = words.shape[1]
        x = words + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        hidden = x[torch.arange(len(x), device=x.device), lengths - 1].float()
        with torch.autocast(hidden.device.type, enabled=False):  # features stay float32 (baron §5)
            return WordFeatures(hidden, self.ln_final(hidden) @ self.text_projection)


class WholeTextTower(TextTower):
    """Any other text half of open_clip, with open_clip's own forward (SigLIP, CLIPA): it embeds whole texts alone."""

    hidden_dim = 0

    def __init__(self, *, name: str, pretrained: str):
        config = clip_config(name, TEXT.name_key)
        with _built_from(name, TEXT):
            text = open_clip.CLIPTextCfg(**config["text_cfg"])
        if text.hf_model_name:
            raise UserError(f"The text half of {name} (MODEL.TEXT.NAME) is not open_clip's own: choose another model.")
        text_part = {key: config[key] for key in ("embed_dim", "quick_gelu", "text_cfg")}
        super().__init__(architecture=json.dumps(text_part, sort_keys=True))
        self.dim, self.context, hub = config["embed_dim"], text.context_length, text.hf_tokenizer_name
        options = {"context_length": self.context, **(text.tokenizer_kwargs or {})}
        options |= {"trust_remote_code": False} if hub else {}  # the tokenizer's folder may hold code
        with _built_from(name, TEXT):
            self.text = open_clip.CustomTextCLIP(**text_part, vision_cfg=_STUB_IMAGE_HALF).text
        make = partial(open_clip.tokenizer.HFTokenizer, hub) if hub else open_clip.SimpleTokenizer
        remedy = "correct its name, or fetch it by other means"
        with telling(f"The tokenizer {hub} of MODEL.TEXT.NAME {name} could not be loaded", remedy=remedy):
            self._tokenizer = make(**options)
        load_half(self.text, TEXT, name=name, pretrained=pretrained, quick_gelu=config["quick_gelu"])
        self.freeze()

    def tokenize(self, texts) -> list[list[int]]:
        """Ids with padding up to ``context``: without a causal mask, padding counts."""
        return self._tokenizer(list(texts)).tolist()

    @property
    def word_embeddings(self) -> Tensor:
        raise UserError("This method reads single words, but MODEL.TEXT.NAME is not a CLIP that does: choose another.")

    def features(self, tokens: list[list[int]]) -> WordFeatures:
        embedding = self.text(torch.tensor(tokens, device=self.device))
        return WordFeatures(embedding[:, :0], embedding)

    def encode_hidden(self, texts, batch_size: int = 256) -> Tensor:
        return self.word_embeddings  # a UserError


def load_clip_visual(architecture: str, pretrained: str) -> nn.Module:
    """open_clip's ``visual`` (VisionTransformer, ModifiedResNet or TimmModel) in float32, on the CPU.

    ``architecture`` (an open_clip model, or a json in the format of its configs) decides the activation of a ViT:
    OpenAI's and CLIM's weights were trained as "ViT-B-16-quickgelu"; CLIM's published ViT detectors were measured as
    "ViT-B-16", with exact GELU (clip_fvlm §4). ``pretrained`` as in :func:`clim.text.build.build_text_tower`.
    """
    config = clip_config(architecture, IMAGE.name_key)
    quick_gelu = config["quick_gelu"]
    # No dropout, as CLIM; no weights but ours: timm's files may hold code.
    vision_cfg = config["vision_cfg"] | {"timm_drop": 0.0, "timm_drop_path": None, "timm_model_pretrained": False}
    halves = {"vision_cfg": vision_cfg, "text_cfg": _STUB_TEXT_HALF}
    with _built_from(architecture, IMAGE):
        visual = open_clip.CLIP(embed_dim=config["embed_dim"], quick_gelu=quick_gelu, **halves).visual
    activation = quick_gelu if hasattr(visual, "transformer") else None  # a ResNet has ReLU
    load_half(visual, IMAGE, name=architecture, pretrained=pretrained, quick_gelu=activation)
    return visual


def check_pixels(architecture: str, pretrained: str, *, mean: list[float], std: list[float]) -> None:
    """Warn where MODEL.PIXEL_MEAN and PIXEL_STD do not suit the tag ``pretrained`` or, of a file, any of the model."""
    is_tag = open_clip.is_pretrained_cfg(architecture, pretrained)
    tags = [pretrained] if is_tag else open_clip.list_pretrained_tags_by_model(architecture)
    trained = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    right = [[round(255 * value, 4) for value in (*one["mean"], *one["std"])] for one in trained]
    if right and not any(np.allclose([*mean, *std], row, atol=0.5) for row in right):
        what = "MODEL.PIXEL_MEAN and PIXEL_STD are not those of the weights of %s: set them to %s and %s, in RGB."
        logger.warning(what, architecture, right[0][:3], right[0][3:])


def is_clip(name: str) -> bool:
    """Whether ``name`` is an open_clip model or an existing json file."""
    return name in open_clip.list_models() or _json_file(name) is not None


def clip_config(name: str, key: str) -> dict:
    """{"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", …} of the model ``name``; ``key``: the config's."""
    if path := _json_file(name):
        remedy = f"{key} must name a json in the format of open_clip's configs."
        read_json(path, remedy=remedy, kind=_Config)
        config = read_json(path, remedy=remedy)
    elif name in open_clip.list_models():
        config = open_clip.get_model_config(name)
    else:
        raise UserError(f"{key} {name!r} is neither an open_clip model (such as ViT-B-16-quickgelu) nor a json of one.")
    return {"quick_gelu": False} | config


def _json_file(name: str) -> Path | None:
    path = resolve(name)
    return path if path.suffix == ".json" and path.is_file() else None


def is_words_tower(name: str) -> bool:
    """Whether the text half of the open_clip model ``name`` is CLIP's own transformer."""
    with _built_from(name, TEXT):
        own, clips = open_clip.CLIPTextCfg(**clip_config(name, TEXT.name_key)["text_cfg"]), open_clip.CLIPTextCfg()
    return all(getattr(own, key) == getattr(clips, key) for key in _TEXT_KIND)


def _built_from(name: str, half: Half):
    """Errors of the block, which builds a ``half`` from the description of ``name``, become a UserError."""
    what = f"{half.name_key} {name} does not describe a {half.what} that can be built"
    return telling(what, remedy="correct it as in open_clip's own configs")


def load_half(module: nn.Module, half: Half, *, name: str, pretrained: str, quick_gelu: bool | None) -> None:
    """Load the weights ``pretrained`` of the model ``name`` into ``module``, in the module's precision; "" loads none.

    ``quick_gelu``: whether the module has QuickGELU or exact GELU, None: neither; warns about weights that were trained
    with the other one. UserError if weights cannot be found or read, or do not fit.
    """
    if not pretrained:
        if half is TEXT:  # no checkpoint of a detector holds it
            logger.warning("The %s %s has random weights: its embeddings are random too.", half.what, name)
        return
    path, of_tag = _find_weights(half, name=name, pretrained=pretrained)
    state, is_openai = read_half(half, path)
    own = module.state_dict()
    parts = {key.partition(".")[0] for key in own}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in own and k.partition(".")[0] in parts]
    other = [k for k in own if k in state and _form(own[k]) != _form(state[k])]
    if wrong := missing + surplus + other:
        raise UserError(
            f"The weights in {path} ({half.weights_key}) do not fit the {half.what} of {name} ({len(wrong)} differ, "
            f"first {wrong[0]}): set {half.name_key} to the model of these weights."
        )
    # A file may lack the counts of batches, which evaluation never reads.
    used = {key: state.get(key, value) for key, value in own.items()}
    require_finite(used, path)
    module.load_state_dict(used)
    trained_with = True if of_tag is None and is_openai else of_tag
    if None not in (quick_gelu, trained_with) and trained_with != quick_gelu:
        remedy = f"choose its twin with or without -quickgelu in {half.name_key}, or change quick_gelu in the json"
        logger.warning(
            f"The weights in {path} were trained with {ACTIVATIONS[trained_with]}, but the {half.what} of {name} "
            f"computes {ACTIVATIONS[quick_gelu]}: {remedy}."
        )


def _form(weight: Tensor) -> tuple:
    return weight.shape, weight.is_floating_point()


def _find_weights(half: Half, *, name: str, pretrained: str) -> tuple[Path, bool | None]:
    """The file of ``pretrained``, which may be downloaded, and whether it uses QuickGELU (None: unknown)."""
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if tag or pretrained.startswith(_HUB):
        source = tag or {"hf_hub": pretrained.removeprefix(_HUB) + "/"}
        link = source.get("url") or f"https://huggingface.co/{source.get('hf_hub', '').rstrip('/')}"
        remedy = f"fetch {link} by other means and set {half.weights_key} to that file"
        with telling(f"The weights {pretrained!r} could not be downloaded", remedy=remedy):
            return Path(open_clip.download_pretrained(source)), tag.get("quick_gelu", False) if tag else None
    path = resolve(pretrained)
    if not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        remedy = "correct it, or name the file that holds the weights"
        raise UserError(f"{half.weights_key} {pretrained!r} is neither a file nor a tag of {name} ({tags}): {remedy}.")
    return path, None
