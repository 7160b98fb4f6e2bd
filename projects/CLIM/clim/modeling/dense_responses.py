"""How near every location of an image is to a text: the response maps of CLIM's Figs. 3, 4 and 5.

The release has no code for them: a recipe of ours (clip_fvlm §6). Shapes: B images, D width of embeddings,
(h, w) locations, Q texts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clim.errors import UserError

from .backbones.encoder import ImageEncoder

RES5_STRIDE = 2  # of a C4 head's last stage, on top of its backbone's


def dense_stride(model: nn.Module) -> int:
    """Pixels between two locations of :func:`dense_embeddings`."""
    encoder = _image_encoder(model)
    if encoder is not None:
        return encoder.dense_stride
    (name,) = _c4_head(model).in_features
    return model.backbone.output_shape()[name].stride * RES5_STRIDE


def dense_embeddings(model: nn.Module, images: Tensor) -> Tensor:
    """(B, D, h, w): a unit vector for every location, in the space of the model's texts.

    Args:
        model: a detector with a C4 head, or a model with an image encoder.
        images: normalised pixels (B, 3, H, W). H and W are multiples of :func:`dense_stride`, so that the map
            covers the image and nothing else.

    Raises UserError for another kind of model.
    """
    encoder = _image_encoder(model)
    if encoder is not None:
        return encoder.dense(encoder.features(images))
    return head_embeddings(_c4_head(model), model.backbone(images))


def head_embeddings(roi_heads: nn.Module, features: dict[str, Tensor]) -> Tensor:
    """(B, D, h, w) of a C4 head: its last stage on the whole map, then the classifier's embedding per location.

    A region's embedding is that of the mean over its locations; here every location is embedded by itself.
    """
    (name,) = roi_heads.in_features
    last = roi_heads.res5(features[name]).permute(0, 2, 3, 1)
    embeddings = roi_heads.predictors[-1].embed(last.flatten(0, 2))
    return F.normalize(embeddings, dim=1).unflatten(0, last.shape[:3]).permute(0, 3, 1, 2)


def responses(embeddings: Tensor, texts: Tensor) -> Tensor:
    """Cosines (B, Q, h, w) of unit ``embeddings`` (B, D, h, w) with ``texts`` (Q, D) of any length."""
    return torch.einsum("bdhw,qd->bqhw", embeddings, F.normalize(texts, dim=1))


def _image_encoder(model: nn.Module) -> ImageEncoder | None:
    return next((module for module in model.modules() if isinstance(module, ImageEncoder)), None)


def _c4_head(model: nn.Module) -> nn.Module:
    head = getattr(model, "roi_heads", None)
    if not (hasattr(head, "res5") and hasattr(head, "predictors")):
        raise UserError(
            f"{type(model).__name__} has neither a C4 head with a text classifier nor an image encoder: response "
            "maps can be drawn for these two."
        )
    return head
