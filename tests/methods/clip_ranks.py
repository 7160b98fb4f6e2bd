"""What two processes do, written down for test_clip.py and test_gather.py: python clip_ranks.py OUTPUT.

Each rank writes OUTPUT/rank{0,1}.pth.
"""

import sys
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.nn.functional import normalize

from clim.data.tiles import Tiles
from clim.methods import Texts
from clim.methods.clip import ClipContrast
from clim.methods.gather import gather_rows

DIM, WIDTH = 5, 7


class Rows:
    """A text tower that hands out prepared rows."""

    def __init__(self, rows):
        self.rows = rows

    def encode(self, captions):
        return self.rows[[int(caption) for caption in captions]]


def pairs(count, seed):
    """(inputs (count, WIDTH), caption embeddings (count, DIM))."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, WIDTH, generator=generator),
        normalize(torch.randn(count, DIM, generator=generator), dim=-1),
    )


def loss_and_gradients(inputs, captions):
    """ClipContrast on a linear encoder: the loss, and the gradients of weight and temperature."""
    method = ClipContrast(scale=20.0, max_scale=100.0)
    weight = torch.linspace(-1, 1, WIDTH * DIM).sin().view(WIDTH, DIM).requires_grad_()
    count = len(inputs)
    tiles = Tiles(
        boxes=torch.zeros(count, 4), canvas=torch.zeros(count, dtype=torch.int64), image_ids=torch.arange(count),
        captions=[[str(i)] for i in range(count)], drawn=[str(i) for i in range(count)], tags=[[]] * count,
    )  # fmt: skip
    texts = Texts(tiles, encoder=Rows(captions), class_embeddings=torch.zeros(0, DIM))
    regions = method.select(tiles, None)
    (loss,) = method.losses({"tile": inputs @ weight}, regions, texts).values()
    loss.backward()
    return loss.detach(), weight.grad, method.logit_scale.grad


def main(output):
    rank, told = comm.get_rank(), {}
    for name, counts in {"equal": (3, 3), "unequal": (1, 4)}.items():
        inputs, captions = pairs(sum(counts), seed=1)
        share = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        told[name] = loss_and_gradients(inputs[share], captions[share])
        told[name + "_gathered"] = gather_rows(inputs[share])
    torch.save(told, Path(output) / f"rank{rank}.pth")


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
