"""BARON's caption branch on pseudo regions: a bag of proposals is read like a sentence, and aligned with captions.

With 1 x 1 canvases the tile is the image and this is BARON (baron §5); with mosaics it is BARON + CLIM: the bag of
each tile, its box in the place of the image's, against that tile's captions (CLIM paper §3.3; baron §7).
Shape legend: methods/base.py; n words of a region, W width of a word, S sequences, L words of the longest.
"""

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from clim.losses import matched_contrast
from clim.text.tower import close_up, surviving

from .bags import BagRules, box_waves, reading_orders, tile_bags
from .base import METHOD_REGISTRY, Method, Regions, Texts
from .queue import TextQueue


@METHOD_REGISTRY.register()
class Baron(Method):
    """Bags of proposals against captions, both with a memory.

    Args:
        dim: D of captions.
        word_dim: W.
        words: n.
        rules: which proposals a tile's bag may hold.
        orders: different random orders in which a bag is read, at most.
        word_dropout: probability that a word is removed, drawn for each order; a region keeps one at least.
        frequencies, frequency_base: ``count`` and ``base`` of :func:`clim.methods.bags.box_waves`.
        temperature: factor of the cosines.
        queue_length: bags of the past, and as many captions, per process.
        weight: of the loss.
    """

    classifier = "pseudo_words"

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        word_dim: int,
        words: int,
        rules: BagRules,
        orders: int,
        word_dropout: float,
        frequencies: int,
        frequency_base: float,
        temperature: float,
        queue_length: int,
        weight: float,
    ):
        super().__init__()
        self.words, self.rules, self.orders, self.word_dropout = words, rules, orders, word_dropout
        self.frequencies, self.frequency_base = frequencies, frequency_base
        self.temperature, self.weight = temperature, weight
        width = 4 * frequencies
        self.positional_embed = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, words * word_dim)
        )
        self.bag_queue, self.caption_queue = TextQueue(queue_length, dim), TextQueue(queue_length, dim)

    @classmethod
    def from_config(cls, cfg):
        baron = cfg.MODEL.METHOD.BARON
        return {
            "dim": cfg.MODEL.TEXT.DIM,
            "word_dim": cfg.MODEL.TEXT.WORD_DIM,
            "words": cfg.MODEL.OPEN_VOCAB.WORDS,
            "rules": BagRules(
                min_iof=baron.MIN_IOF,
                topk=baron.TOPK,
                ratio=tuple(baron.RATIO),
                min_area=baron.MIN_AREA,
                min_objectness=baron.MIN_OBJECTNESS,
                max_overlap=baron.NMS,
                size=baron.PROPOSALS,
            ),
            "orders": baron.ORDERS,
            "word_dropout": baron.WORD_DROPOUT,
            "frequencies": baron.FREQUENCIES,
            "frequency_base": baron.FREQUENCY_BASE,
            "temperature": baron.TEMPERATURE,
            "queue_length": baron.QUEUE_LENGTH,
            "weight": baron.WEIGHT,
        }

    def select(self, tiles, proposals):
        """proposal: those of each tile's bag; tile: the tiles, one more region of each bag."""
        return {"proposal": tile_bags(tiles, proposals, self.rules), "tile": Regions.of_tiles(tiles.boxes, tiles)}

    def read(self, embeddings, regions, texts):
        """bag: (S, D) unit embeddings of all bags in their orders; image_id: (S,) that of each bag's tile."""
        bags, tile = self.read_bags(*self.placed_words(embeddings, regions), texts)
        return {"bag": bags, "image_id": texts.tiles.image_ids[tile]}

    def losses(self, embeddings, regions, texts):
        stored_bags, stored_captions = self.bag_queue.read(), self.caption_queue.read()
        loss = matched_contrast(
            torch.cat([embeddings["bag"], stored_bags[0]]),
            torch.cat([embeddings["image_id"], stored_bags[1]]),
            torch.cat([texts.all_captions, stored_captions[0]]),
            torch.cat([texts.all_caption_ids, stored_captions[1]]),
            scale=self.temperature,
        )
        return {"loss_bag": self.weight * loss}

    def placed_words(self, embeddings: dict[str, Tensor], regions: dict[str, Regions]) -> tuple[Tensor, Tensor]:
        """Words (R, n, W) of all regions with their places added, and the tile (R,) of each."""
        boxes = torch.cat([regions["proposal"].boxes, regions["tile"].boxes])
        members = torch.cat([regions["proposal"].members, regions["tile"].members])
        owner = members.int().argmax(1)
        frames = regions["tile"].boxes[owner]
        waves = box_waves(boxes, frames, count=self.frequencies, base=self.frequency_base)
        written = torch.cat([embeddings["proposal"], embeddings["tile"]]).float()
        return (written + self.positional_embed(waves)).unflatten(1, (self.words, -1)), owner

    def read_bags(self, words: Tensor, owner: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
        """Unit embeddings (S, D) of every bag in each of its orders, words dropped at random, and the tiles (S,).

        UserError where the text tower cannot read the longest bag that the rules allow.
        """
        texts.tower.check_length(self.words * (self.rules.size + 1))
        orders, tile = [], []
        owners = owner.tolist()
        for t in range(len(texts.tiles)):
            bag = reading_orders([r for r, o in enumerate(owners) if o == t], count=self.orders)
            orders += bag
            tile += [t] * len(bag)
        places = pad_sequence(orders, batch_first=True, padding_value=-1).to(words.device)  # (S, regions)
        real = (places >= 0)[..., None].expand(-1, -1, self.words)  # (S, regions, n)
        kept = surviving(real, dropout=self.word_dropout).flatten(1)  # (S, L)
        sequences, lengths = close_up(words[places.clamp(min=0)].flatten(1, 2), kept)
        bags = F.normalize(texts.encode_words(sequences, lengths).embedding, dim=-1)
        return bags, torch.tensor(tile, device=words.device)

    def update_queues(self, embeddings, texts):
        self.bag_queue.push(embeddings["bag"], embeddings["image_id"])
        self.caption_queue.push(texts.all_captions, texts.all_caption_ids)
