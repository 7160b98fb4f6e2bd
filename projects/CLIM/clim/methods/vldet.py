"""VLDet: nouns of captions are matched with proposals, captions with whole images (vldet §4).

With 1 x 1 canvases the tile is the image and this is VLDet. With mosaics it is VLDet + CLIM, of which nothing was
published: nouns are matched within each tile, its caption belongs to its own box, and the texts of all other tiles of
the GPU are negatives (vldet §8). Shapes as in base.py; V nouns, N nouns and P regions of one tile.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

from clim.losses import cosine_logits, matched_bce, multi_hot_bce, noun_contrast, positives_by_id
from clim.text.classes import load_nouns, require_rows

from .base import METHOD_REGISTRY, Method, Regions, Texts, arguments
from .tile_assignment import assign_to_tiles, clip_to_tiles, tiles_and_proposals


@METHOD_REGISTRY.register()
class VLDet(Method):
    """Losses ``loss_caption`` and ``loss_noun``. Arguments: ``nouns`` and the keys of MODEL.METHOD.VLDET (config.py).

    In each stage the caption belongs to a tile's last region and the nouns to the others. A tile's own box starts as
    the last one. Empty boxes are left out of the next stage; without ``exact_box`` the tile's own box may be among
    them. A tile without regions adds 0 to a sum and counts in the mean over the tiles of all sources.
    """

    @configurable
    def __init__(
        self, *, nouns: Tensor, temperature: float, caption_weight: float, noun_weight: float, noun_loss: str,
        proposals: int, tile_proposals: int, tile_min_iof: float, exact_box: bool,
    ):  # fmt: skip
        """``nouns``: (V, D) unit rows, whose numbers are the tags of pairs; (0, D): the checkpoint gives them."""
        super().__init__()
        self.logits = partial(cosine_logits, temperature=temperature)
        self.caption_weight, self.noun_weight, self.noun_loss = caption_weight, noun_weight, noun_loss
        self.exact_box = exact_box
        self.proposals, self.tile_proposals, self.tile_min_iof = proposals, tile_proposals, tile_min_iof
        self.match = MATCHING[noun_loss]
        self.register_buffer("nouns", nouns)
        self.nouns_win = len(nouns) > 0

    @classmethod
    def from_config(cls, cfg):
        keys, key = arguments(cfg.MODEL.METHOD.VLDET), "MODEL.METHOD.VLDET.EMBEDDINGS"
        path = keys.pop("embeddings")
        return keys | {"nouns": load_nouns(path, cfg, key=key) if path else torch.zeros(0, cfg.MODEL.TEXT.DIM)}

    def before_load(self, weights: dict, *, prefix: str) -> None:
        """The configured nouns stay; without any, make room for those of a checkpoint's ``weights``."""
        theirs = weights.get(prefix + "nouns", self.nouns)
        if self.nouns_win:
            weights[prefix + "nouns"] = self.nouns
        elif len(theirs) != len(self.nouns) and theirs.shape[1] == self.nouns.shape[1]:
            self.nouns = self.nouns.new_zeros(theirs.shape)

    def select(self, tiles, proposals):
        """region: the best proposals of each tile, not empty and clipped to it, then the tile's own box."""
        boxes, owner = [tiles.boxes], [torch.arange(len(tiles), device=tiles.boxes.device)]
        for rows, found in tiles_and_proposals(tiles, proposals):
            candidates = Boxes(found.proposal_boxes.tensor.detach().clone())
            candidates.clip(found.image_size)
            candidates = candidates[candidates.nonempty()]
            topk = self.proposals if len(rows) == 1 else self.tile_proposals
            assigned, _ = assign_to_tiles(tiles.boxes[rows], candidates, min_iof=self.tile_min_iof, topk=topk)
            box, tile = assigned.nonzero(as_tuple=True)
            owner.insert(-1, rows[tile])  # before the tiles' own boxes; the stable sort keeps these behind proposals
            boxes.insert(-1, clip_to_tiles(candidates.tensor[box], tiles.boxes[rows[tile]]))
        tile, order = torch.cat(owner).sort(stable=True)
        return {"region": replace(Regions.of_tiles(tiles.boxes, tiles)[tile], boxes=torch.cat(boxes)[order])}

    def refine(self, tiles, regions, boxes):
        """The regressed boxes, clipped to their tile. Empty ones are dropped."""
        tile, last = owners_and_last(regions["region"])
        refined = clip_to_tiles(boxes["region"], tiles.boxes[tile])
        if self.exact_box:
            refined = torch.where(last[:, None], tiles.boxes[tile], refined)
        return {"region": replace(regions["region"], boxes=refined)[Boxes(refined).nonempty()]}

    def losses(self, embeddings, regions, texts):
        rows, region = embeddings["region"], regions["region"]
        tile, last = owners_and_last(region)
        own, others = (mask.nonzero()[:, 0] for mask in (last, ~last))
        count = sum(len(source.tiles) for source in (texts, *texts.others))
        sums = {}
        if self.caption_weight > 0:
            sums["loss_caption"] = self.caption_weight * self.caption_losses(rows[own], region[own], texts).sum()
        if self.noun_weight > 0:
            sums["loss_noun"] = self.noun_weight * self.noun_losses(rows[others], tile[others], texts).sum()
        return {name: loss / count for name, loss in sums.items()}

    def caption_losses(self, embeddings: Tensor, regions: Regions, texts: Texts) -> Tensor:
        """Losses (R,) of ``embeddings`` (R, D) against the captions of the tiles of all sources."""
        sources = (texts, *texts.others)
        ids = torch.cat([source.tiles.image_ids for source in sources])
        positive = positives_by_id(regions.members, texts.tiles.image_ids, ids)
        captions = torch.cat([source.drawn for source in sources])
        return matched_bce(self.logits(embeddings, captions), positive, negative_weight=1.0)

    def noun_losses(self, embeddings: Tensor, tile: Tensor, texts: Texts) -> Tensor:
        """Losses (M,) of matched ``embeddings`` (R, D), which belong to ``tile`` (R,); "bce": losses (R,) of all."""
        nouns, columns, counts = nouns_of_tiles([tags for t in (texts, *texts.others) for tags in t.tiles.tags])
        key, what = "MODEL.METHOD.VLDET.EMBEDDINGS", "An image-text pair"
        require_rows(self.nouns, max(nouns.tolist(), default=-1), key=key, what=what)
        nouns, counts = nouns.to(tile.device), counts.to(tile.device)
        logits = self.logits(embeddings, self.nouns[nouns])
        pairs = match_tiles(logits.detach().cpu(), tile.cpu(), columns[: len(texts.tiles)], match=self.match)
        rows, found = (indices.to(tile.device) for indices in pairs)
        if self.noun_loss == "bce":
            target = torch.zeros(len(tile), len(self.nouns), dtype=torch.bool, device=tile.device)
            target[rows, nouns[found]] = True
            return multi_hot_bce(self.logits(embeddings, self.nouns), target)
        negatives = counts.sum(0) * (counts == 0)  # (T, U): how often other tiles have a noun that this one lacks
        # The last column is the background of match_softly, with a logit of 0.
        return noun_contrast(F.pad(logits, (0, 1))[rows], found, F.pad(negatives, (0, 1))[tile[rows]])


def owners_and_last(regions: Regions) -> tuple[Tensor, Tensor]:
    """(R,) the tile of each region, and (R,) bool, whether it is its tile's last one. Rows are tile by tile."""
    tile = regions.members.int().argmax(1)
    return tile, tile.diff(append=tile.new_tensor([-1])) != 0


def nouns_of_tiles(tags: list[list[int]]) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """The U different nouns (U,) of all tiles, ascending; each tile's nouns as indices of them, (N,); counts (T, U)."""
    nouns, columns = torch.tensor(sum(tags, []), dtype=torch.int64).unique(return_inverse=True)
    of_tile = columns.split([len(own) for own in tags])
    return nouns, of_tile, torch.stack([own.bincount(minlength=len(nouns)) for own in of_tile])


def match_tiles(logits: Tensor, tile: Tensor, columns: Sequence[Tensor], *, match) -> tuple[Tensor, Tensor]:
    """Match the nouns of each tile with its regions: rows (M,) and columns (M,) of ``logits`` (R, U).

    ``tile`` (R,) is the tile of each row, ascending, ``columns`` (N,) the nouns of each tile. ``match`` is
    :func:`match_nouns` or :func:`match_softly`; a column U is the background.
    """
    rows = torch.arange(len(tile)).split(tile.bincount(minlength=len(columns)).tolist())
    pairs = match([logits[mine][:, own].T for mine, own in zip(rows, columns, strict=True)])
    background = torch.tensor([logits.shape[1]])
    found = [torch.cat([own, background])[nouns] for own, (nouns, _) in zip(columns, pairs, strict=True)]
    return torch.cat([mine[regions] for mine, (_, regions) in zip(rows, pairs, strict=True)]), torch.cat(found)


def match_nouns(similarities: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The one-to-one pairs with the largest sum of ``similarities`` (N, P) of each tile: nouns (M,) and regions (M,).

    M = min(N, P): there is no threshold. A noun that is listed twice takes two regions.
    """
    from scipy.optimize import linear_sum_assignment  # takes half a second

    pairs = [linear_sum_assignment(s.numpy(force=True), maximize=True) for s in similarities]
    return [(torch.from_numpy(nouns), torch.from_numpy(regions)) for nouns, regions in pairs]


def match_softly(similarities: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each region's row of largest mass, by optimal transport: nouns (P,) in [0, N] and regions (P,) of each tile.

    Row N is the background, of similarity 0. Each row's masses are divided by their maximum.
    """
    distances = [-F.pad(s, (0, 0, 0, 1)) for s in similarities]
    rows, columns = max(len(d) for d in distances), max(1, *(d.shape[1] for d in distances))
    missing = [(0, columns - d.shape[1], 0, rows - len(d)) for d in distances]
    padded = torch.stack([F.pad(d, pad, value=torch.inf) for d, pad in zip(distances, missing, strict=True)])
    plans = sinkhorn_plan(padded, eps=1e-3, iterations=100)
    chosen = (plans / plans.amax(2, keepdim=True)).nan_to_num(0.0).argmax(1)  # padding: 0 / 0
    return [(row[: s.shape[1]], torch.arange(s.shape[1])) for row, s in zip(chosen, similarities, strict=True)]


def sinkhorn_plan(distance: Tensor, *, eps: float, iterations: int) -> Tensor:
    """Mass (…, N, P) that moves from N rows to P columns, each of mass 1, after ``iterations`` of Sinkhorn's updates.

    An iteration ends with the rows: their sums are 1. The sums of columns are not, where N and P differ. Nothing moves
    over an infinite ``distance`` (…, N, P); a row or column with no other distances is padding.
    """
    mass = math.log(1 + 1e-8)
    *batch, rows, columns = distance.shape
    u, v = distance.new_ones(*batch, rows), distance.new_ones(*batch, columns)

    def scaled() -> Tensor:
        return (u[..., None] - distance + v[..., None, :]) / eps

    for _ in range(iterations):
        v = v + eps * (mass - scaled().logsumexp(-2).nan_to_num(neginf=0.0))  # padding: log 0
        u = u + eps * (mass - scaled().logsumexp(-1).nan_to_num(neginf=0.0))
    return scaled().exp()


MATCHING = {"contrastive": match_nouns, "bce": match_nouns, "sinkhorn": match_softly}
