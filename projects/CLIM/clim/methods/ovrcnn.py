"""OV-RCNN's vision-language pre-training: words are grounded in locations of images and of tiles (ovrcnn §1, §3).

Shapes as in base.py; R locations of all canvases, L words of a caption, N locations of a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.losses import GLOBAL_METRICS, LOCAL_METRICS, choices
from clim.text.bert import TokenBatch, mask_words
from clim.text.build import bert_config

from .base import METHOD_REGISTRY, Method, Rows, arguments
from .multimodal import MultimodalTransformer


@METHOD_REGISTRY.register()
class Grounding(Method):
    """Every tile against the captions of its contrast group; a transformer reads plain images with their captions.

    Arguments are the keys of MODEL.METHOD.GROUNDING. Image-text matching and hidden words need a ``transformer``.
    """

    needs_proposals = False
    pools = "locations"

    @configurable
    def __init__(
        self, *, global_metric: str, local_metric: str, temperature: float, contrast_group: int, joint: bool,
        max_cells: int, transformer: MultimodalTransformer | None, mlm_probability: float, mlm_hidden: float,
        text_dropout: bool,
    ):  # fmt: skip
        super().__init__()
        self.score, self.to_metric = GLOBAL_METRICS[global_metric], LOCAL_METRICS[local_metric]
        self.temperature, self.group, self.joint, self.max_locations = temperature, contrast_group, joint, max_cells
        self.transformer = transformer
        self.mlm_probability, self.mlm_hidden, self.text_dropout = mlm_probability, mlm_hidden, text_dropout

    @classmethod
    def from_config(cls, cfg):
        _check_contrast(cfg)
        keys, transformer = arguments(cfg.MODEL.METHOD.GROUNDING), None
        of_transformer = {name: keys.pop(name) for name in ("layers", "heads", "dropout", "mask_padding")}
        vocabulary = bert_config(cfg.MODEL.TEXT.NAME).vocab_size  # raises UserError where it is not a BERT
        if of_transformer["layers"] > 0:
            transformer = MultimodalTransformer(dim=cfg.MODEL.TEXT.DIM, vocabulary=vocabulary, **of_transformer)
        return {"transformer": transformer, **keys}

    def select(self, tiles, grids):
        locations = locations_of_tiles(tiles, grids)
        return {"location": drop_locations(locations, self.max_locations) if self.training else locations}

    def losses(self, embeddings, regions, texts):
        tiles, tower, at = texts.tiles, texts.tower, regions["location"]
        tokens = tower.tokens(tiles.drawn)
        read, chosen = self.hide_words(tokens, tiles.alone, mask_id=tower.mask_id)
        locations, is_location = pad_by_tile(embeddings["location"], at.tile, count=len(tiles))

        words = F.embedding(read.ids, tower.word_embeddings)
        losses = self.grounding_losses(words, ~read.special, locations, is_location, tiles.image_ids)
        if self.transformer is not None and 1 in tiles.counts:
            place, _ = pad_by_tile(at.place, at.tile, count=len(tiles))
            plain = tiles.alone.nonzero()[:, 0]
            images = locations[plain], is_location[plain], place[plain]
            captions = read.of(plain)  # the transformer reads padding, so captions of tiles must not add any
            longest = captions.ids.shape[1]
            wanted = tokens.ids[plain, :longest], chosen[plain, :longest]
            losses |= self.multimodal_losses(captions, images, *wanted, tiles.image_ids[plain], tower)
        return losses

    def hide_words(self, tokens: TokenBatch, alone: Tensor, *, mask_id: int) -> tuple[TokenBatch, Tensor]:
        """The tokens to read, and the words to predict (T, L) bool: of plain images only, in training only."""
        if self.transformer is None or not self.training:
            return tokens, torch.zeros_like(tokens.special)
        read, chosen = mask_words(tokens, mask_id=mask_id, probability=self.mlm_probability, hidden=self.mlm_hidden)
        plain = alone[:, None]
        kept = TokenBatch(*(torch.where(plain, new, old) for new, old in zip(read, tokens, strict=True)))
        return kept, chosen & plain

    def grounding_losses(
        self, words: Tensor, is_word: Tensor, locations: Tensor, is_location: Tensor, image_ids: Tensor
    ) -> dict[str, Tensor]:
        """Two losses for each matrix of scores (:func:`clim.losses.choices`), as means over all tiles."""
        sides = self.to_metric(words), is_word, self.to_metric(locations), is_location
        losses: dict[str, Tensor] = {}
        for rows, share in self.groups(len(words), words.device):
            scores = self.score(*(part[rows] for part in sides), temperature=self.temperature)
            for kind, matrix in scores.items():
                for side, loss in zip(("image", "caption"), choices(matrix, image_ids[rows]), strict=True):
                    name = f"loss_{kind}_to_{side}"
                    losses[name] = losses.get(name, 0.0) + share * loss
        return losses

    def multimodal_losses(self, read: TokenBatch, images, ids, chosen, image_ids, tower) -> dict[str, Tensor]:
        """Image-text matching within each contrast group, and the hidden words of the captions."""
        tokens = tower.contextual(read.ids, read.attention, dropout=self.text_dropout and self.training)
        matching, features = 0.0, []
        for rows, share in self.groups(len(tokens), tokens.device):
            scores, matched = self.transformer(tokens[rows], read.attention[rows], *(part[rows] for part in images))
            matching = matching + share * sum(choices(scores, image_ids[rows]))
            features.append(matched)
        logits = self.transformer.heads.predictions(torch.cat(features)[chosen], tower.word_embeddings)
        words = F.cross_entropy(logits.float(), ids[chosen], reduction="sum") / chosen.sum().clamp(min=1)
        return {"loss_matching": matching, "loss_words": words}

    def groups(self, count: int, device) -> list[tuple[Tensor, float]]:
        """The contrast groups of ``count`` tiles: the indices of each group, and its share of the tiles."""
        parts = torch.arange(count, device=device).split(self.group or count)
        return [(part, len(part) / count) for part in parts]


def _check_contrast(cfg) -> None:
    """UserError for settings with which a part of the method learns nothing."""
    grounding, plain = cfg.MODEL.METHOD.GROUNDING, cfg.DATALOADER.CAPTIONS_PER_GPU
    if grounding.LOCAL_METRIC == "cosine" and (temperature := grounding.TEMPERATURE) >= 1:
        remedy = "set it to 0.01, or LOCAL_METRIC to dot"
        raise UserError(f"MODEL.METHOD.GROUNDING.TEMPERATURE {temperature} is too high for cosines: {remedy}.")
    if grounding.LAYERS and plain == 0:
        remedy = "raise DATALOADER.CAPTIONS_PER_GPU, or set LAYERS 0"
        raise UserError(f"MODEL.METHOD.GROUNDING.LAYERS {grounding.LAYERS} needs plain images: {remedy}.")
    if cfg.DATALOADER.MOSAICS_PER_GPU and grounding.JOINT:
        return  # then the groups hold tiles as well
    if grounding.LAYERS and cfg.DATALOADER.MOSAICS_PER_GPU and 1 in cfg.INPUT.MOSAIC.GRIDS:  # losses of some batches
        raise UserError("INPUT.MOSAIC.GRIDS has 1: remove it, or set MODEL.METHOD.GROUNDING.JOINT True or LAYERS 0.")
    group = grounding.CONTRAST_GROUP or plain
    if plain and min(plain, plain % group or group) == 1:
        raise UserError(
            f"MODEL.METHOD.GROUNDING.CONTRAST_GROUP {grounding.CONTRAST_GROUP} leaves one of the DATALOADER."
            f"CAPTIONS_PER_GPU {plain} images alone in its group, where it learns nothing: change one of them."
        )


class FeatureGrid(NamedTuple):
    """The locations of a feature map on one canvas, which has its padding on the right and below."""

    size: tuple[int, int]  # (H, W) px of the canvas itself
    padded: tuple[int, int]  # (H', W') px of the network input
    map_size: tuple[int, int]  # (h, w) locations of the map

    @property
    def shape(self) -> tuple[int, ...]:
        """⌈H · h / H'⌉ rows and ⌈W · w / W'⌉ columns of locations show some of the canvas."""
        return tuple(-(-s * n // p) for s, n, p in zip(self.size, self.map_size, self.padded, strict=True))

    def centres(self, device) -> tuple[Tensor, Tensor]:
        """y of the rows and x of the columns (px): the middle of what a location shows of the canvas."""
        pitches = [p / n for n, p in zip(self.map_size, self.padded, strict=True)]
        starts = [torch.arange(n, device=device) * pitch for n, pitch in zip(self.shape, pitches, strict=True)]
        ends = [(s + p).clamp(max=extent) for s, p, extent in zip(starts, pitches, self.size, strict=True)]
        y, x = ((start + end) / 2 for start, end in zip(starts, ends, strict=True))
        return y, x


@dataclass
class Locations(Rows):
    """The locations to embed, tile by tile."""

    canvas: Tensor  # (R,) int64
    row: Tensor  # (R,) int64
    column: Tensor  # (R,) int64
    tile: Tensor  # (R,) int64
    place: Tensor  # (R, 2) x and y of the middle, divided by the canvas's columns and rows


def locations_of_tiles(tiles: Tiles, grids: Sequence[FeatureGrid]) -> Locations:
    """Assign each location to the tile that contains the centre of what the location shows; drop the others.

    A plain image has all locations that show any of it (official OVR-CNN). The tiles of a mosaic share all locations:
    a side of 24 gives 12, 8 or 6 to each tile, a side of 25 gives 12 and 13 (ovrcnn §3).
    """
    parts = []
    for canvas, (grid, here) in enumerate(zip(grids, tiles.rows_of_canvases, strict=True)):
        x0, y0, x1, y1 = tiles.boxes[here].T[..., None]
        y, x = grid.centres(tiles.boxes.device)
        in_row, in_column = (y0 <= y) & (y < y1), (x0 <= x) & (x < x1)
        tile, row, column = (in_row[:, :, None] & in_column[:, None, :]).nonzero(as_tuple=True)
        place = torch.stack([(column + 0.5) / grid.shape[1], (row + 0.5) / grid.shape[0]], dim=1)
        parts.append((torch.full_like(tile, canvas), row, column, here[tile], place))
    return Locations(*(torch.cat(field) for field in zip(*parts, strict=True)))


def drop_locations(locations: Locations, limit: int) -> Locations:
    """At most ``limit`` locations of each tile, drawn uniformly (official OVR-CNN: 100; ovrcnn §1.1); 0: all."""
    if limit == 0:
        return locations
    tile = locations.tile.cpu()
    shuffled = torch.randperm(len(tile))
    order = shuffled[torch.argsort(tile[shuffled], stable=True)]  # tile by tile, at random inside a tile
    counts = torch.bincount(tile)
    rank = torch.arange(len(tile)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return locations[order[rank < limit].sort().values.to(locations.tile.device)]


def pad_by_tile(rows: Tensor, tile: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Rows (R, D) of locations as (T, N, D), N >= 1, for T = ``count`` tiles, and (T, N) bool: no padding."""
    counts = torch.bincount(tile, minlength=count)
    real = torch.arange(max([1, *counts.tolist()]), device=tile.device) < counts[:, None]
    out = rows.new_zeros(*real.shape, rows.shape[1])
    out[real] = rows[torch.argsort(tile, stable=True)]
    return out, real
