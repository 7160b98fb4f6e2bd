"""The contract of a method: it chooses regions, the model embeds them, it turns embeddings into losses.

Shape legend: R regions, T tiles of the batch, C texts, K classes, D embedding width.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from detectron2.structures import Instances
from fvcore.common.registry import Registry
from torch import Tensor, nn

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.text import TextTower, WordFeatures

METHOD_REGISTRY = Registry("METHOD")
METHOD_REGISTRY.__doc__ = "How image-text pairs are learnt from: files of clim/methods, by MODEL.METHOD.NAME."


@dataclass
class Regions:
    """Boxes to be pooled for one role, and the tiles that each stands for."""

    boxes: Tensor  # (R, 4) xyxy in canvas pixels
    canvas: Tensor  # (R,) int64, index of the canvas in the batch
    members: Tensor  # (R, T) bool

    def __len__(self) -> int:
        return len(self.canvas)

    @classmethod
    def of_tiles(cls, boxes: Tensor, tiles: Tiles) -> "Regions":
        """One region for each tile: its row of ``boxes`` (T, 4)."""
        return cls(boxes, tiles.canvas, torch.eye(len(tiles), dtype=torch.bool, device=boxes.device))


class Texts:
    """What a method may ask about the texts of its source batch."""

    def __init__(self, tiles: Tiles, *, encoder, class_embeddings: Tensor):
        self.tiles = tiles
        self.class_embeddings = class_embeddings  # (K + 1, D) unit rows; the last, background, may be zeros
        self._encoder = encoder

    @cached_property
    def drawn(self) -> Tensor:
        """Embeddings (T, D) of the caption drawn for each tile."""
        return self.encode(self.tiles.drawn)

    @cached_property
    def all_captions(self) -> Tensor:
        """Embeddings (C, D) of all captions of all tiles, tile by tile."""
        return self.encode([caption for captions in self.tiles.captions for caption in captions])

    @cached_property
    def all_caption_ids(self) -> Tensor:
        """(C,) image id of each of :attr:`all_captions`."""
        counts = torch.tensor([len(captions) for captions in self.tiles.captions])
        return self.tiles.image_ids.repeat_interleave(counts.to(self.tiles.image_ids.device))

    def encode(self, captions: list[str]) -> Tensor:
        """Frozen sentence embeddings (C, D), unit rows, from the cache where there is one."""
        return self._encoder.encode(captions).to(self.class_embeddings.device)

    @property
    def tower(self) -> TextTower:
        """The live text tower, for what is read token by token: OV-RCNN's words (:class:`BertTower`)."""
        return self._encoder.live

    def encode_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """The live tower's features of pseudo words (B, L, W), with gradients (:meth:`TextTower.encode_words`)."""
        return self.tower.encode_words(words, lengths)

    def tag_targets(self, members: Tensor) -> Tensor:
        """Multi-hot tags of regions (R, K): all tags of a region's tiles."""
        num_classes = len(self.class_embeddings) - 1
        per_tile = torch.zeros(len(self.tiles), num_classes)
        for row, tags in zip(per_tile, self.tiles.tags, strict=True):
            if tags and max(tags) >= num_classes:
                raise UserError(
                    f"An image-text pair has tag {max(tags)}, but the detector {num_classes} classes: "
                    "DATASETS.CAPTIONS and MODEL.VOCABULARY must speak of the same categories."
                )
            row[tags] = 1
        return ((members.float() @ per_tile.to(members.device)) > 0).float()


class Method(nn.Module):
    """Base of all methods. Parameters and buffers live in checkpoints under ``method.*``.

    Attributes:
        pools: "boxes", regions of any place and size; or "cells" of an encoder's grid, for which ``Cells`` take the
            place of ``Regions`` and one ``Grid`` a canvas that of proposals (methods/cells.py).
        sources: of a joint batch, the ones it learns from.
        classifier: MODEL.OPEN_VOCAB.CLASSIFIER of a detector, whose projections it reads.
        joint: of methods that pool cells: plain pictures and mosaics are one batch; False: each has its losses.
    """

    needs_proposals = True
    pools = "boxes"
    sources: tuple[str, ...] = ("captions", "mosaics")
    classifier = "cosine"
    joint = True

    def select(self, tiles: Tiles, proposals: list[Instances] | None) -> dict[str, Regions]:
        """Regions to embed, by role.

        Args:
            proposals: one per canvas, best first, without gradient; None where they are not needed; a list of
                ``Grid`` for a method that pools cells.
        """
        raise NotImplementedError

    def read(self, embeddings: dict[str, Tensor], regions: dict[str, Regions], texts: Texts) -> dict[str, Tensor]:
        """What ``losses`` and ``update_queues`` take: the embeddings themselves, or what they both need of them.

        Args:
            embeddings: un-normalised projections (R, D) of every role, from one stage of the head.
        """
        return embeddings

    def losses(self, embeddings: dict[str, Tensor], regions: dict[str, Regions], texts: Texts) -> dict[str, Tensor]:
        """{"loss_…": scalar} of ``embeddings``, the result of ``read``. Changes no state."""
        raise NotImplementedError

    def update_queues(self, embeddings: dict[str, Tensor], texts: Texts) -> None:
        """Store what later losses need. Called once per source batch, with the last stage's result of ``read``."""

    def after_update(self) -> None:
        """Put parameters back into their range; called after every step of the optimiser."""
