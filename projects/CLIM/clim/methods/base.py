"""The contract of a method: it selects regions, the model embeds them, the method turns the embeddings into losses.

To add a method, write one file in this folder: a subclass of :class:`Method` with ``select`` and ``losses``, decorated
with ``@METHOD_REGISTRY.register()``. ``MODEL.METHOD.NAME`` names the class. clip.py is the shortest example;
CONTRIBUTING.md, "Add a method", lists all steps.

Shapes in all files: R regions, T tiles of the batch, C texts, K classes, D embedding width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from detectron2.structures import Instances
from fvcore.common.registry import Registry
from torch import Tensor, nn

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.text import TextTower

METHOD_REGISTRY = Registry("METHOD")


class Rows:
    """Base of dataclasses of tensors with a row for each region; ``x[indices or mask]`` takes these rows."""

    canvas: Tensor  # (R,) int64, index of the canvas in the batch

    def __len__(self) -> int:
        return len(self.canvas)

    def __getitem__(self, rows: Tensor):
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]  # the host waits for the number of rows once, not for each field
        return type(self)(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass
class Regions(Rows):
    """The boxes of one role, and the tiles that each box stands for."""

    boxes: Tensor  # (R, 4) xyxy in canvas pixels
    canvas: Tensor  # (R,) int64, index of the canvas in the batch
    members: Tensor  # (R, T) bool

    @classmethod
    def of_tiles(cls, boxes: Tensor, tiles: Tiles) -> "Regions":
        """One region for each tile; its box is the tile's row of ``boxes`` (T, 4)."""
        return cls(boxes, tiles.canvas, torch.eye(len(tiles), dtype=torch.bool, device=boxes.device))


class Texts:
    """The texts of a source batch's tiles. Their embeddings are computed when a method asks for them."""

    others: Sequence["Texts"] = ()  # of the other source batches of this iteration

    def __init__(self, tiles: Tiles, *, encoder, class_embeddings: Tensor):
        self.tiles = tiles
        self.class_embeddings = class_embeddings  # (K + 1, D) unit rows; the background's, the last, may be zeros
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
        repeats = counts.to(self.tiles.image_ids.device)
        return self.tiles.image_ids.repeat_interleave(repeats, output_size=int(counts.sum()))

    def encode(self, captions: list[str]) -> Tensor:
        """Frozen unit embeddings (C, D), from the cache if there is one."""
        return self._encoder.encode(captions).to(self.class_embeddings.device)

    def redrawn(self) -> "Texts":
        """The texts with another draw of each tile's caption; the same texts where each tile has a single caption."""
        if all(len(captions) == 1 for captions in self.tiles.captions):
            return self
        return Texts(self.tiles.redrawn(), encoder=self._encoder, class_embeddings=self.class_embeddings)

    @property
    def tower(self) -> TextTower:
        """The loaded text tower, for methods that read tokens (OV-RCNN) or pseudo words (BARON)."""
        return self._encoder.live

    def tag_targets(self, members: Tensor) -> Tensor:
        """Multi-hot tags (R, K): a region has all tags of its tiles."""
        num_classes = len(self.class_embeddings) - 1
        per_tile = torch.zeros(len(self.tiles), num_classes)
        for row, tags in zip(per_tile, self.tiles.tags, strict=True):
            if tags and max(tags) >= num_classes:
                remedy = "give DATASETS.CAPTIONS and MODEL.VOCABULARY the same classes"
                raise UserError(f"An image has tag {max(tags)}, but the detector has {num_classes} classes: {remedy}.")
            row[tags] = 1
        return ((members.float() @ per_tile.to(members.device)) > 0).float()


def arguments(section) -> dict:
    """The keys of a config section as keyword arguments: CAPTION_WEIGHT becomes ``caption_weight``."""
    return {key.lower(): value for key, value in section.items()}


class Method(nn.Module):
    """Base of all methods. Checkpoints hold their parameters and buffers under ``method.*``.

    A method draws random numbers from torch's random state on the CPU, which a resumed run restores.
    """

    needs_proposals = True  # False: ``select`` gets None, so that a model without a detector can train the method
    # "boxes", or "locations" of a feature map: ``select`` then gets a ``FeatureGrid`` for each canvas, not proposals,
    # and returns ``Locations``, not ``Regions`` (ovrcnn.py).
    pools = "boxes"
    sources: tuple[str, ...] = ("captions", "mosaics")  # of the joint batch, that the method learns from
    classifier = "cosine"  # MODEL.OPEN_VOCAB.CLASSIFIER that projects the embeddings
    redraws_captions = False  # True: each later stage of a cascade has ``texts`` with other drawn captions
    joint = True  # of methods that pool locations: plain images and mosaics are one batch; False: they are two

    def align(self, stages: Iterable[tuple[dict, dict[str, Tensor]]], texts: Texts) -> dict[str, Tensor]:
        """Losses of a source batch, summed over ``stages``: the regions of each role, and their projections (R, D)."""
        losses: dict[str, Tensor] = {}
        for stage, (regions, projections) in enumerate(stages):
            if stage > 0 and self.redraws_captions:
                texts = texts.redrawn()
            embeddings = self.read(projections, regions, texts)
            for name, loss in self.losses(embeddings, regions, texts).items():
                losses[name] = losses.get(name, 0.0) + loss
        self.update_queues(embeddings, texts)
        return losses

    def select(self, tiles: Tiles, proposals: list[Instances] | None) -> dict[str, Regions]:
        """{role: regions to embed}. ``proposals``: one for each canvas, best first, without gradient."""
        raise NotImplementedError

    def refine(self, tiles: Tiles, regions: dict[str, Regions], boxes: dict[str, Tensor]) -> dict[str, Regions]:
        """The regions of a cascade's next stage, from this stage's ``regions`` and their ``boxes`` (R, 4), which the
        head has regressed and clipped to the canvas. Without this method, the regions stay as they are.
        """
        return regions

    def read(self, embeddings: dict[str, Tensor], regions: dict[str, Regions], texts: Texts) -> dict[str, Tensor]:
        """What ``losses`` and ``update_queues`` both need, from the un-normalised projections (R, D) of each role."""
        return embeddings

    def losses(self, embeddings: dict[str, Tensor], regions: dict[str, Regions], texts: Texts) -> dict[str, Tensor]:
        """{"loss_…": scalar} of a stage, from the result of ``read``. Changes no state.

        In a step, all processes give the same names in the same order.
        """
        raise NotImplementedError

    def update_queues(self, embeddings: dict[str, Tensor], texts: Texts) -> None:
        """Store the result of ``read`` for later losses. Called once per source batch, for the last stage."""

    def before_load(self, weights: dict[str, Tensor], *, prefix: str) -> None:
        """Change a checkpoint's ``weights`` in place before they are loaded; this method's begin with ``prefix``."""

    def after_update(self) -> None:
        """Clamp parameters to their range. Called after every step of the optimiser."""
