"""OV-RCNN's vision-language pre-training: words grounded in cells of pictures and of mosaics' tiles (ovrcnn §1, §3).

Shape legend: methods/base.py; L words, N cells of a tile.
"""

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from clim.errors import UserError
from clim.losses import GLOBAL_METRICS, LOCAL_METRICS, choices
from clim.text.bert import TokenBatch, mask_words
from clim.text.build import bert_config

from .base import METHOD_REGISTRY, Method
from .cells import cells_of_tiles, drop_cells, padded
from .multimodal import MultimodalTransformer


@METHOD_REGISTRY.register()
class Grounding(Method):
    """Every tile against the captions of its contrast group; plain pictures are read with their captions as well.

    Args:
        global_metric, local_metric, temperature: how caption and tile are scored (clim/losses.py).
        group: tiles that are contrasted with each other, in the batch's order; 0: all.
        joint: plain pictures and mosaics are one batch; False: each has its losses.
        max_cells: of a tile, drawn in training.
        transformer: None: neither image-text matching nor hidden words.
        mlm_probability, mlm_hidden: see :func:`clim.text.bert.mask_words`; only plain pictures' captions.
        text_dropout: the frozen text tower reads captions with dropout in training.
    """

    needs_proposals = False
    pools = "cells"

    @configurable
    def __init__(
        self,
        *,
        global_metric: str,
        local_metric: str,
        temperature: float,
        group: int,
        joint: bool,
        max_cells: int,
        transformer: MultimodalTransformer | None,
        mlm_probability: float,
        mlm_hidden: float,
        text_dropout: bool,
    ):
        super().__init__()
        self.score, self.to_metric = GLOBAL_METRICS[global_metric], LOCAL_METRICS[local_metric]
        self.temperature, self.group, self.joint, self.max_cells = temperature, group, joint, max_cells
        self.transformer = transformer
        self.mlm_probability, self.mlm_hidden = mlm_probability, mlm_hidden
        self.text_dropout = text_dropout

    @classmethod
    def from_config(cls, cfg):
        grounding = cfg.MODEL.METHOD.GROUNDING
        for key, known in (("GLOBAL_METRIC", GLOBAL_METRICS), ("LOCAL_METRIC", LOCAL_METRICS)):
            if grounding[key] not in known:
                raise UserError(
                    f'MODEL.METHOD.GROUNDING.{key} is "{grounding[key]}": choose one of {", ".join(known)}.'
                )
        _check_contrast(cfg)
        return {
            "global_metric": grounding.GLOBAL_METRIC,
            "local_metric": grounding.LOCAL_METRIC,
            "temperature": grounding.TEMPERATURE,
            "group": grounding.CONTRAST_GROUP,
            "joint": grounding.JOINT,
            "max_cells": grounding.MAX_CELLS,
            "transformer": build_transformer(cfg),
            "mlm_probability": grounding.MLM_PROBABILITY,
            "mlm_hidden": grounding.MLM_HIDDEN,
            "text_dropout": grounding.TEXT_DROPOUT,
        }

    def select(self, tiles, grids):
        cells = cells_of_tiles(tiles, grids)
        return {"cell": drop_cells(cells, self.max_cells) if self.training else cells}

    def losses(self, embeddings, regions, texts):
        tiles, tower, chosen_cells = texts.tiles, texts.tower, regions["cell"]
        tokens = tower.tokens(tiles.drawn)
        read, chosen = self.hide_words(tokens, tiles.alone, mask_id=tower.mask_id)
        cells, is_cell = padded(embeddings["cell"], chosen_cells.tile, count=len(tiles))

        words = F.embedding(read.ids, tower.word_embeddings)
        losses = self.grounding_losses(words, ~read.special, cells, is_cell, tiles.image_ids)
        if self.transformer is not None and tiles.alone.any():
            place, _ = padded(chosen_cells.place, chosen_cells.tile, count=len(tiles))
            plain = tiles.alone.nonzero()[:, 0]
            pictures = cells[plain], is_cell[plain], place[plain]
            captions = read.of(plain)  # padding is read: it must not depend on the tiles' captions
            longest = captions.ids.shape[1]
            wanted = tokens.ids[plain, :longest], chosen[plain, :longest]
            losses |= self.multimodal_losses(captions, pictures, *wanted, tiles.image_ids[plain], tower)
        return losses

    def hide_words(self, tokens: TokenBatch, alone: Tensor, *, mask_id: int) -> tuple[TokenBatch, Tensor]:
        """Tokens to read, and (T, L) the words to be predicted: of plain pictures only, in training only."""
        if self.transformer is None or not self.training:
            return tokens, torch.zeros_like(tokens.special)
        read, chosen = mask_words(tokens, mask_id=mask_id, probability=self.mlm_probability, hidden=self.mlm_hidden)
        plain = alone[:, None]
        kept = TokenBatch(*(torch.where(plain, new, old) for new, old in zip(read, tokens, strict=True)))
        return kept, chosen & plain

    def grounding_losses(
        self, words: Tensor, is_word: Tensor, cells: Tensor, is_cell: Tensor, image_ids: Tensor
    ) -> dict[str, Tensor]:
        """Both choices for every kind of score, means over all tiles: four terms, or two of the mean metric."""
        words, cells = self.to_metric(words), self.to_metric(cells)
        losses: dict[str, Tensor] = {}
        for rows, share in self.groups(len(words), words.device):
            scores = self.score(words[rows], is_word[rows], cells[rows], is_cell[rows], temperature=self.temperature)
            for kind, matrix in scores.items():
                for side, loss in zip(("image", "caption"), choices(matrix, image_ids[rows]), strict=True):
                    name = f"loss_{kind}_to_{side}"
                    losses[name] = losses.get(name, 0.0) + share * loss
        return losses

    def multimodal_losses(self, read: TokenBatch, pictures, ids, chosen, image_ids, tower) -> dict[str, Tensor]:
        """Image-text matching among the plain pictures of each group, and the hidden words of their captions."""
        tokens = tower.contextual(read.ids, read.attention, dropout=self.text_dropout and self.training)
        matching, features = 0.0, []
        for rows, share in self.groups(len(tokens), tokens.device):
            scores, matched = self.transformer(tokens[rows], read.attention[rows], *(part[rows] for part in pictures))
            matching = matching + share * sum(choices(scores, image_ids[rows]))
            features.append(matched)
        logits = self.transformer.word_logits(torch.cat(features)[chosen], tower.word_embeddings)
        words = F.cross_entropy(logits.float(), ids[chosen], reduction="sum") / chosen.sum().clamp(min=1)
        return {"loss_matching": matching, "loss_words": words}

    def groups(self, count: int, device) -> list[tuple[Tensor, float]]:
        """Contrast groups of ``count`` tiles: the indices of each, and its share of them."""
        parts = torch.arange(count, device=device).split(self.group or count)
        return [(part, len(part) / count) for part in parts]


def build_transformer(cfg) -> MultimodalTransformer | None:
    """The transformer of ``cfg.MODEL.METHOD.GROUNDING``, for the words of ``cfg.MODEL.TEXT``; None for 0 layers."""
    grounding, dim = cfg.MODEL.METHOD.GROUNDING, cfg.MODEL.TEXT.DIM
    vocabulary = bert_config(cfg.MODEL.TEXT.NAME)["vocab_size"]  # also tells that it is a BERT
    if grounding.LAYERS == 0:
        return None
    if dim % grounding.HEADS:
        raise UserError(
            f"MODEL.METHOD.GROUNDING.HEADS {grounding.HEADS} does not divide MODEL.TEXT.DIM {dim}: choose a divisor."
        )
    if cfg.DATALOADER.CAPTIONS_PER_GPU == 0:
        raise UserError(
            "MODEL.METHOD.GROUNDING.LAYERS asks for a transformer, which reads plain pictures with their captions, "
            "but DATALOADER.CAPTIONS_PER_GPU is 0: raise it, or set LAYERS 0."
        )
    return MultimodalTransformer(
        dim=dim,
        vocabulary=vocabulary,
        layers=grounding.LAYERS,
        heads=grounding.HEADS,
        dropout=grounding.DROPOUT,
        mask_padding=grounding.MASK_PADDING,
    )


def _check_contrast(cfg) -> None:
    """UserError for settings with which nothing can be learnt: one tile alone, or cosines that hardly differ."""
    grounding, plain = cfg.MODEL.METHOD.GROUNDING, cfg.DATALOADER.CAPTIONS_PER_GPU
    if grounding.LOCAL_METRIC == "cosine" and grounding.TEMPERATURE >= 1:
        raise UserError(
            f"MODEL.METHOD.GROUNDING.TEMPERATURE {grounding.TEMPERATURE} divides cosines, which differ by 2 at most: "
            "set it to 0.01, or LOCAL_METRIC to dot."
        )
    if cfg.DATALOADER.MOSAICS_PER_GPU and grounding.JOINT:
        return  # the tiles of a canvas are there as well
    group = grounding.CONTRAST_GROUP or plain
    if plain and min(plain, plain % group or group) == 1:
        raise UserError(
            f"MODEL.METHOD.GROUNDING.CONTRAST_GROUP {grounding.CONTRAST_GROUP} leaves one of DATALOADER."
            f"CAPTIONS_PER_GPU {plain} pictures alone, with none to be told from: change either."
        )
