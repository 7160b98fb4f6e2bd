"""BARON's caption loss: the proposals of a tile are one bag, which is read like a sentence and compared with captions.

1. ``select``: a bag is up to 10 proposals of a tile and the tile's own box (:func:`draw_bags`).
2. The classifier projects each region to n pseudo words; the position of its box inside the tile is added.
3. ``read``: the text tower encodes the words of a bag in up to 4 random orders, half of the words dropped.
4. ``losses``: loss_bag = 10 · ½ [ℓ(S, Y) + ℓ(Sᵀ, Yᵀ)] over the bags b and captions c of the batch and the queues, with
   S_bc = 30 · cos(b, c) and Y_bc = 1 where their image ids match (:func:`clim.losses.matched_contrast`).
5. ``update_queues``: bags and captions are stored for later losses.

With 1 x 1 canvases the tile is the image and this is BARON (baron §5). With mosaics it is BARON + CLIM: each tile takes
the image's place (CLIM paper §3.3; baron §7). The numbers are the defaults of MODEL.METHOD.BARON.

Shapes as in base.py; n words of a region, W width of a word, S sequences, L words of the longest.
"""

import math
from dataclasses import dataclass, fields

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms

from clim.data.tiles import Tiles
from clim.losses import matched_contrast
from clim.text.tower import close_up, surviving

from .base import METHOD_REGISTRY, Method, Regions, Texts, arguments
from .memory import TextQueue
from .tile_assignment import assign_to_tiles, clip_to_tiles, tiles_and_proposals


@dataclass(frozen=True)
class BagRules:
    """Which proposals a bag may hold: keys of MODEL.METHOD.BARON (config.py)."""

    min_iof: float
    topk: int
    ratio: list[float]
    min_area: float
    min_objectness: float
    nms: float
    proposals: int


@METHOD_REGISTRY.register()
class Baron(Method):
    """Loss ``loss_bag``. Arguments: ``dim`` D, ``word_dim`` W, ``words`` n, and the keys of MODEL.METHOD.BARON."""

    classifier = "pseudo_words"

    @configurable
    def __init__(
        self, *, dim: int, word_dim: int, words: int, rules: BagRules, orders: int, word_dropout: float,
        frequencies: int, frequency_base: float, temperature: float, queue_length: int, weight: float,
    ):  # fmt: skip
        super().__init__()
        self.words, self.rules, self.orders, self.word_dropout = words, rules, orders, word_dropout
        self.frequencies, self.frequency_base = frequencies, frequency_base
        self.temperature, self.weight = temperature, weight
        width = 4 * frequencies
        layers = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, words * word_dim)
        self.positional_embed = nn.Sequential(*layers)
        self.bag_queue, self.caption_queue = TextQueue(queue_length, dim), TextQueue(queue_length, dim)

    @classmethod
    def from_config(cls, cfg):
        keys = arguments(cfg.MODEL.METHOD.BARON)
        rules = BagRules(**{field.name: keys.pop(field.name) for field in fields(BagRules)})
        text = {"dim": cfg.MODEL.TEXT.DIM, "word_dim": cfg.MODEL.TEXT.WORD_DIM, "words": cfg.MODEL.OPEN_VOCAB.WORDS}
        return {"rules": rules, **text, **keys}

    def select(self, tiles, proposals):
        """proposal: the proposals of all bags; tile: the tiles, each one more region of its bag."""
        return {"proposal": draw_bags(tiles, proposals, self.rules), "tile": Regions.of_tiles(tiles.boxes, tiles)}

    def read(self, embeddings, regions, texts):
        """bag: (S, D) unit embeddings of all bags in their orders; image_id: (S,) of each bag's tile."""
        bags, tile = self.encode_bags(*self.add_positions(embeddings, regions), texts)
        return {"bag": bags, "image_id": texts.tiles.image_ids[tile]}

    def losses(self, embeddings, regions, texts):
        bags = self.bag_queue.with_stored(embeddings["bag"], embeddings["image_id"])
        captions = self.caption_queue.with_stored(texts.all_captions, texts.all_caption_ids)
        return {"loss_bag": self.weight * matched_contrast(*bags, *captions, scale=self.temperature)}

    def update_queues(self, embeddings, texts):
        self.bag_queue.push(embeddings["bag"], embeddings["image_id"])
        self.caption_queue.push(texts.all_captions, texts.all_caption_ids)

    def add_positions(self, embeddings: dict[str, Tensor], regions: dict[str, Regions]) -> tuple[Tensor, Tensor]:
        """Words (R, n, W) of all regions with their positions, and the tile (R,) of each region."""
        boxes = torch.cat([regions["proposal"].boxes, regions["tile"].boxes])
        tile = torch.cat([regions["proposal"].members, regions["tile"].members]).int().argmax(1)
        frames = regions["tile"].boxes[tile]
        positions = encode_positions(boxes, frames, count=self.frequencies, base=self.frequency_base)
        words = torch.cat([embeddings["proposal"], embeddings["tile"]]).float()
        return (words + self.positional_embed(positions)).unflatten(1, (self.words, -1)), tile

    def encode_bags(self, words: Tensor, tile: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
        """Unit embeddings (S, D) of every bag in each of its orders, words dropped at random, and the tiles (S,).

        Takes words (R, n, W) and tiles (R,) of all regions. UserError if the rules allow bags too long for the tower.
        """
        texts.tower.check_length(self.words * (self.rules.proposals + 1))
        bags: list[list[int]] = [[] for _ in range(len(texts.tiles))]
        for region, t in enumerate(tile.tolist()):
            bags[t].append(region)
        orders = [draw_orders(bag, count=self.orders) for bag in bags]
        sequence_tiles = [t for t, of_bag in enumerate(orders) for _ in of_bag]
        places = pad_sequence(sum(orders, []), batch_first=True, padding_value=-1).to(words.device)  # (S, regions)
        real = (places >= 0)[..., None].expand(-1, -1, self.words)  # (S, regions, n)
        kept = surviving(real, dropout=self.word_dropout).flatten(1)  # (S, L)
        sequences, lengths = close_up(words[places.clamp(min=0)].flatten(1, 2), kept)
        embeddings = texts.tower.encode_words(sequences, lengths).embedding
        return F.normalize(embeddings, dim=-1), torch.tensor(sequence_tiles, device=words.device)


def draw_bags(tiles: Tiles, proposals: list[Instances], rules: BagRules) -> Regions:
    """The proposals of every tile's bag, clipped to the tile, without gradient; the members of each are its tile.

    Draws at most ``rules.proposals`` of those that :func:`filter_proposals` keeps of a tile, uniformly.
    """
    device, tiles = tiles.boxes.device, tiles.to("cpu")  # a GPU would let the host wait several times a tile
    boxes, tile_of_box = [tiles.boxes.new_zeros(0, 4)], []
    for rows, found in tiles_and_proposals(tiles, [found.to("cpu") for found in proposals]):
        assigned, _ = assign_to_tiles(tiles.boxes[rows], found.proposal_boxes, min_iof=rules.min_iof, topk=rules.topk)
        for row, mine in zip(rows.tolist(), assigned.unbind(1), strict=True):
            tile = tiles.boxes[row]
            inside = clip_to_tiles(found.proposal_boxes.tensor[mine], tile)
            kept = inside[filter_proposals(inside, found.objectness_logits[mine], tile, rules)]
            drawn = kept[torch.randperm(len(kept))[: rules.proposals]]
            boxes.append(drawn)
            tile_of_box += [row] * len(drawn)
    tile = torch.tensor(tile_of_box, dtype=torch.int64)
    members = tile[:, None] == torch.arange(len(tiles))
    return Regions(*(x.to(device) for x in (torch.cat(boxes).detach(), tiles.canvas[tile], members)))


def filter_proposals(boxes: Tensor, logits: Tensor, tile: Tensor, rules: BagRules) -> Tensor:
    """Indices of the proposals of one tile that pass the rules of shape, size and objectness, and then of overlap.

    If none passes the first three, the best alone is kept. ``boxes`` (P, 4) of objectness ``logits`` (P,), best first,
    lie inside the ``tile`` (4,).
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    shaped = (width > rules.ratio[0] * height) & (width < rules.ratio[1] * height)
    large = width * height > rules.min_area * Boxes(tile[None]).area()
    passed = (shaped & large & (logits.float().sigmoid() > rules.min_objectness)).nonzero().squeeze(1)
    if len(passed) == 0:
        passed = passed.new_zeros(1)
    return passed[nms(boxes[passed], logits[passed].float(), rules.nms)]


def draw_orders(members: list[int], *, count: int) -> list[Tensor]:
    """min(``count``, n!) different orders, each (n,), of the n ``members`` of a bag. Draws uniformly."""
    rows, orders = torch.tensor(members), {}
    while len(orders) < min(count, math.factorial(len(members))):
        order = torch.randperm(len(members))
        orders[tuple(order.tolist())] = rows[order]
    return list(orders.values())


def encode_positions(boxes: Tensor, frames: Tensor, *, count: int, base: float) -> Tensor:
    """(R, 4 · F) sines and cosines of the positions of ``boxes`` (R, 4) in their ``frames`` (R, 4), F = ``count``.

    Each x of (centre x, centre y, width, height), as a part of the frame's side, gives F values side by side:
    sin(2π x · f_i) for even i and cos(2π x · f_i) for odd i, with f_i = ``base``^(⌊i/2⌋ - F/4).
    """
    sides = (frames[:, 2:] - frames[:, :2]).clamp(min=1e-6)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 - frames[:, :2]) / sides
    position = torch.cat([centre, (boxes[:, 2:] - boxes[:, :2]) / sides], 1)
    exponents = torch.arange(count // 2, device=boxes.device) - count // 4
    angles = 2 * math.pi * position[..., None] * base**exponents
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
