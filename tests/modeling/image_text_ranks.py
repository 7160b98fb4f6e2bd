"""What two processes do, written down for test_runs.py: python image_text_ranks.py OUTPUT CONFIG KEY VALUE …

Each rank writes OUTPUT/rank{0,1}.pth.
"""

import sys
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm

from clim.data.loader import build_mappers
from clim.engine import Trainer, load_config
from clim.processes import leave_group

HALF = 5  # images of a process


def step(config, overrides, images):
    """Loss and gradients of one step of the trainer's model, distributed where it is, on these images."""
    cfg = load_config(config, overrides)
    mapper = build_mappers(cfg, ["captions"], seed=0)["captions"]
    trainer = Trainer(cfg)
    captions = [mapper(index=index, epoch=0) for index in images]
    loss = sum(trainer.model.train()({"captions": captions, "mosaics": [], "regions": []}).values())
    loss.backward()
    gradients = {n: p.grad for n, p in trainer.raw_model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def main(output, config, overrides):
    rank = comm.get_rank()
    loss, gradients = step(config, overrides, range(rank * HALF, (rank + 1) * HALF))
    torch.save({"loss": loss, "gradients": gradients}, Path(output) / f"rank{rank}.pth")
    comm.synchronize()
    leave_group()


if __name__ == "__main__":
    output, config, *overrides = sys.argv[1:]
    launch(main, 2, dist_url="auto", args=(output, config, overrides))
