"""What two processes do, written down for test_clip.py and test_memory.py: python clip_ranks.py OUTPUT.

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
from clim.methods.memory import gather_rows

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
    inputs, captions = (torch.randn(count, width, generator=generator) for width in (WIDTH, DIM))
    return inputs, normalize(captions, dim=-1)


def start_weight():
    """(WIDTH, DIM) of the linear encoder."""
    return torch.linspace(-1, 1, WIDTH * DIM).sin().view(WIDTH, DIM).requires_grad_()


def loss_and_gradients(inputs, captions):
    """ClipContrast on a linear encoder: the loss, and the gradients of weight and temperature."""
    method, weight, names = (
        ClipContrast(scale=20.0, max_scale=100.0),
        start_weight(),
        list(map(str, range(len(inputs)))),
    )
    count = len(inputs)
    tiles = Tiles(
        boxes=torch.zeros(count, 4), canvas=torch.zeros(count, dtype=torch.int64), image_ids=torch.arange(count),
        captions=[[name] for name in names], drawn=names, tags=[[]] * count,
    )  # fmt: skip
    texts = Texts(tiles, encoder=Rows(captions), class_embeddings=torch.zeros(0, DIM))
    (loss,) = method.losses({"tile": inputs @ weight}, method.select(tiles, None), texts).values()
    loss.backward()
    return loss.detach(), weight.grad, method.logit_scale.grad


def main(output):
    rank, found = comm.get_rank(), {}
    for name, counts in {"equal": (3, 3), "unequal": (1, 4)}.items():
        inputs, captions = pairs(sum(counts), seed=1)
        share = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        found[name] = loss_and_gradients(inputs[share], captions[share])
        found[name + "_gathered"] = gather_rows(inputs[share])
    torch.save(found, Path(output) / f"rank{rank}.pth")


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
