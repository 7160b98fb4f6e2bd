"""What two processes do, written down for test_distributed.py: python two_ranks.py CONFIG OUTPUT KEY VALUE …

Each rank writes OUTPUT/rank{0,1}.pth.
"""

import copy
import sys
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from clim.data.tiles import Tiles
from clim.engine import Trainer, load_config
from clim.engine.resume import rank_state_path
from clim.errors import UserError, raise_on_all_ranks
from clim.methods import Regions, Texts
from clim.methods.detic import Detic

STEPS = 2
DIM, TILES = 6, 3


def main(config, output, overrides):
    rank = comm.get_rank()
    seed_all_rng(rank)
    written = {"gather": caption_loss(*caption_batch(rank)), "together": sentence_of(error_of_rank_1)}
    cfg = load_config(config, overrides)
    written["steps"], trainer = train(cfg)
    written["queue"] = dict(trainer.raw_model.method.named_buffers())
    written["metrics"] = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text()
    written["resumed"] = resumed(cfg)
    trainer.start_iter = rank
    written["disagreement"] = sentence_of(trainer._check_agreement)
    torch.save(written, Path(output) / f"rank{rank}.pth")


def train(cfg):
    """Steps with the weights, batch and random state before each, and its losses and gradients after it."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    steps, model = [], trainer.raw_model
    run_step, clip = trainer.run_step, trainer.clip_gradients

    def watched_step():
        batch = next(trainer.loader)
        steps.append(
            {
                "batch": copy.deepcopy(batch),
                "weights": copy.deepcopy(model.state_dict()),
                "queue": {name: b.clone() for name, b in model.method.named_buffers()},
                "random": torch.get_rng_state(),
            }
        )
        loader, trainer.loader = trainer.loader, iter([batch])
        run_step()
        trainer.loader = loader

    def watched_clip():
        steps[-1]["gradients"] = gradients(model)
        norm = clip()
        steps[-1]["clipped"] = gradients(model)
        return norm

    trainer.run_step, trainer.clip_gradients = watched_step, watched_clip
    trainer.model.register_forward_hook(
        lambda module, inputs, losses: steps[-1].update(losses={k: v.item() for k, v in losses.items()})
    )
    trainer.train()
    return steps, trainer


def resumed(cfg):
    """The queue and the next random number of a fresh process after resuming from the first checkpoint."""
    if comm.is_main_process():
        (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000000.pth")
    comm.synchronize()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    return {
        "start": trainer.start_iter,
        "queue": dict(trainer.raw_model.method.named_buffers()),
        "random": torch.get_rng_state(),
        "file": rank_state_path(cfg.OUTPUT_DIR, 0).name,
    }


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Directions:
    """Captions "0", "1", … are fixed directions."""

    def encode(self, captions):
        rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(int(c))) for c in captions]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def caption_batch(rank):
    """Embeddings (T, D) that want a gradient, regions and texts of one rank's single images."""
    first = rank * TILES
    embeddings = torch.randn(TILES, DIM, generator=torch.Generator().manual_seed(1000 + rank)).requires_grad_()
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(TILES, 1)
    names = [str(first + i) for i in range(TILES)]
    tiles = Tiles(
        boxes=boxes, canvas=torch.arange(TILES), image_ids=torch.arange(first, first + TILES),
        captions=[[n] for n in names], drawn=names, tags=[[] for _ in names],
    )  # fmt: skip
    return embeddings, tiles


def caption_loss(embeddings, tiles):
    """The loss of official Detic and its gradient."""
    method = Detic(
        dim=DIM, temperature=50.0, bias=[], caption_weight=0.1, caption_base_regions=0,
        caption_negatives="gather", negative_weight=1.0, queue_length=0, tag_weight=0.0, tag_target="per_tag",
        tag_min_iof=0.3, tag_topk=32, groups=0,
    )  # fmt: skip
    regions = Regions.of_tiles(tiles.boxes, tiles)
    texts = Texts(tiles, encoder=Directions(), class_embeddings=torch.zeros(2, DIM))
    loss = method.losses({"caption": embeddings}, {"caption": regions}, texts)["loss_caption"]
    return loss.item(), torch.autograd.grad(loss, embeddings)[0]


def error_of_rank_1():
    with raise_on_all_ranks():
        if comm.get_rank() == 1:
            raise UserError("only process 1 met this")


def sentence_of(function):
    try:
        function()
    except UserError as error:
        return str(error)
    return None


if __name__ == "__main__":
    config, output, *overrides = sys.argv[1:]
    launch(main, 2, dist_url="auto", args=(config, output, overrides))
