"""CLIP's image half with its weights, built by open_clip."""

import open_clip
from torch import nn

from clim.text.clip_config import clip_config
from clim.text.clip_weights import IMAGE, load_half

# Only the image half is kept, so the text half is built as small as open_clip allows.
_STUB_TEXT_HALF = {"layers": 1, "width": 8, "heads": 1, "context_length": 1, "vocab_size": 1}


def load_clip_visual(architecture: str, pretrained: str) -> nn.Module:
    """open_clip's ``visual`` (VisionTransformer or ModifiedResNet) in float32, on the CPU.

    Args:
        architecture: an open_clip model, or a json in the format of its configs. A ViT's activation is the
            named one: "ViT-B-16-quickgelu" for OpenAI's and CLIM's weights as they were trained, "ViT-B-16"
            (exact GELU) to run CLIM's published ViT detectors as they were measured (clip_fvlm §4).
        pretrained: open_clip tag, "hf-hub:owner/repository", a file (OpenAI's, open_clip's or CLIM's), or ""
            for random weights.

    Raises UserError for unknown names and for weights that are missing, unreadable or of another model.
    """
    config = clip_config(architecture, IMAGE.name_key)
    quick_gelu = config.get("quick_gelu", False)
    visual = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        text_cfg=_STUB_TEXT_HALF,
        quick_gelu=quick_gelu,
    ).visual
    has_gelu = hasattr(visual, "transformer")  # a ResNet has ReLU throughout
    load_half(
        visual,
        IMAGE,
        name=architecture,
        pretrained=pretrained,
        quick_gelu=quick_gelu if has_gelu else None,
    )
    return visual
