"""Two Gloo processes on the CPU against what each of them would compute alone.

``python test_distributed.py CONFIG OUTPUT KEY VALUE …`` starts the processes; each writes OUTPUT/rank{0,1}.pth.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.data.tiles import Tiles
from clim.engine import Trainer, load_config
from clim.engine.averaging import BestCheckpoint
from clim.engine.resume import rank_state_path
from clim.engine.trainer import DDP_OPTIONS
from clim.errors import UserError, raise_on_all_ranks
from clim.methods import Regions, Texts
from clim.methods.detic import Detic
from clim.modeling import centernet
from clim.processes import leave_group

CONFIGS = Path(__file__).parents[2] / "configs/mini"
STEPS = 2
DIM, TILES = 6, 3


# ---- what each process does


def main_and_leave(config, output, overrides):
    main(config, output, overrides)
    comm.synchronize()
    leave_group()
    names = {Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")}
    assert not [name for name in names if "gloo" in name], names


def main(config, output, overrides):
    rank = comm.get_rank()
    seed_all_rng(rank)
    written = {"gather": caption_loss(*caption_batch(rank)), "together": sentence_of(lambda: error_of(1))}
    written["of both"] = sentence_of(lambda: error_of(0, 1))
    cfg = load_config(config, overrides)
    written["steps"], trainer = train(cfg)
    written["queue"] = dict(trainer.raw_model.method.named_buffers())
    written["average"] = dict(trainer.average.average)
    written["metrics"] = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text()
    written["resumed"] = resumed(cfg)
    trainer.cfg = load_config(config, [*overrides, "SOLVER.ACCUMULATE", "2"])
    written["accumulated"] = accumulated(trainer, rank)
    trainer.start_iter = rank
    with raise_on_all_ranks(10 + rank, 2**40 + 0.1) as written["values"]:
        pass
    written["best"] = sentence_of(lambda: best_of({"bbox": {"AP": 1.0}} if rank == 0 else {}, cfg))
    written["disagreement"] = sentence_of(trainer._check_agreement)
    for name, loss in (("loss", float("nan") if rank == 1 else 1.0), ("norm", 1.0)):
        trainer.accumulate = lambda loss=loss: ({"loss_a": torch.tensor(loss)}, {"captions": [rank]}, 0.0)
        trainer.clip_gradients = lambda: torch.tensor(torch.nan)  # of the mean over both
        with EventStorage() as trainer.storage:
            written[f"not finite {name}"] = sentence_of(lambda: Trainer.run_step(trainer))
    torch.save(written, Path(output) / f"rank{rank}.pth")


def train(cfg):
    """Steps with the weights, batch and random state before each, and its losses and gradients after it."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    steps, model = [], trainer.raw_model
    run_step, clip, reduce = trainer.run_step, trainer.clip_gradients, torch.distributed.all_reduce
    of_objects = torch.distributed.all_gather_object, torch.distributed.gather_object

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
        torch.distributed.all_gather_object = torch.distributed.gather_object = nothing_pickled
        run_step()
        torch.distributed.all_gather_object, torch.distributed.gather_object = of_objects
        trainer.loader = loader

    def watched_clip():
        steps[-1]["gradients"] = gradients(model)
        norm = clip()
        steps[-1]["clipped"] = gradients(model)
        return norm

    def watched_reduce(counts):  # CenterNet's
        reduce(counts)
        steps[-1]["counts"] = counts.clone()

    trainer.run_step, trainer.clip_gradients = watched_step, watched_clip
    torch.distributed.all_reduce = watched_reduce
    trainer.model.register_forward_hook(
        lambda module, inputs, losses: steps[-1].update(losses={k: v.item() for k, v in losses.items()})
    )
    trainer.train()
    return steps, trainer


def nothing_pickled(*args, **kwargs):
    raise AssertionError("processes exchange small tensors in a step, no pickled objects")


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


class Layers(nn.Module):
    """A batch goes through one of three layers, as where sources alternate; no batch goes through the last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, batch):
        (sample,) = batch["captions"]
        return {"loss": self.layers[sample["image_id"] % 2](sample["x"]).square().mean()}


def layer_batch(rank, index):
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(10 * rank + index))
    return {"captions": [{"image_id": 10 * rank + index, "x": x}], "skipped": []}


def accumulated(trainer, rank):
    """The gradients of two batches: of this rank before the second one, and of the step."""
    model, before = Layers(), {}
    model.layers[1].register_forward_pre_hook(lambda *_: before.update(gradients(model)))
    trainer.model = create_ddp_model(model, device_ids=None, find_unused_parameters=True, **DDP_OPTIONS)
    trainer.loader = iter([layer_batch(rank, 0), layer_batch(rank, 1)])
    losses, images, _ = trainer.accumulate()
    found = {"before": dict(before), "step": gradients(model), "loss": losses["loss"].item(), "images": images}
    for parameter in model.parameters():  # as run_step, where sources alternate
        parameter.grad = torch.zeros_like(parameter)
    trainer.loader = iter([layer_batch(rank, 0), layer_batch(rank, 1)])
    trainer.accumulate()
    return found | {"from zero": gradients(model)}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Directions:
    """Captions "0", "1", … are fixed directions."""

    def encode(self, captions):
        rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(int(c))) for c in captions]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def caption_batch(rank):
    """Embeddings (T, D) with gradients, and tiles, of one rank's single images."""
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


def error_of(*ranks):
    with raise_on_all_ranks():
        if comm.get_rank() in ranks:
            raise UserError(f"a mistake on process {comm.get_rank()}")


def best_of(results, cfg):
    """Evaluations of a known and an unknown metric, as the main process sees them."""
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), cfg.OUTPUT_DIR)
    BestCheckpoint(checkpointer, "bbox/AP", resume=False, extra={}).update(results, 3)
    BestCheckpoint(checkpointer, "bbox/AP75", resume=False, extra={}).update(results, 3)


def sentence_of(function):
    try:
        function()
    except UserError as error:
        return str(error)
    return None


# ---- tests


class Case(NamedTuple):
    config: str
    queue_length: str  # its key
    queue: str  # attribute of the method
    all_captions: bool  # whether the queue takes all captions of a tile, or the drawn one
    loss: str  # of single images
    num_losses: int
    sizes: str = ""  # further overrides


DETIC = Case("detic_clim.yaml", "MODEL.METHOD.DETIC.QUEUE_LENGTH", "queue", False, "loss_caption", 8)
BARON = Case("baron_clim.yaml", "MODEL.METHOD.BARON.QUEUE_LENGTH", "caption_queue", True, "loss_bag", 6)
CASCADE = DETIC._replace(
    config="lvis_detic_clim.yaml", num_losses=14,
    sizes="MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.CENTERNET.POST_NMS_TOPK_TRAIN 40",
)  # fmt: skip
CASES = {"detic": (DETIC, ()), "baron": (BARON, pytest.mark.slow), "cascade": (CASCADE, pytest.mark.slow)}


@pytest.fixture(scope="module", params=[pytest.param(c, id=name, marks=m) for name, (c, m) in CASES.items()])
def case(request):
    if request.param is CASCADE:
        root = request.getfixturevalue("tiny_mini")
        from mini.lvis import build_mini_lvis  # the processes of this file do not find tools/

        build_mini_lvis(root, seed=7, num_train=24, num_val=1, num_pairs=16, workers=1)
    return request.param


@pytest.fixture(scope="module")
def setting(case, tiny_mini, tmp_path_factory):
    """(config overrides, folder of the files of both processes)."""
    folder = tmp_path_factory.mktemp("two_ranks")
    sizes = "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 3 INPUT.MOSAIC.SIZE 128 INPUT.CAPTION.SHORT_SIDE 64"
    solver = "SOLVER.OPTIMIZER SGD SOLVER.BASE_LR 0.001 SOLVER.CLIP_GLOBAL_NORM 1.0 SOLVER.CHECKPOINT_PERIOD 1"
    overrides = [
        *sizes.split(), *case.sizes.split(), "INPUT.CAPTION.LONG_SIDE", "64", "INPUT.MIN_SIZE_TRAIN", "(96,)",
        case.queue_length, "64",
        *solver.split(), "SOLVER.EMA", "0.9", "SOLVER.LOG_PERIOD", "1", "SOLVER.MAX_ITER", str(STEPS),
        "DATASETS.TEST", "()", "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(folder / "output"),
    ]  # fmt: skip
    (folder / "output").mkdir()
    environment = os.environ | {"DETECTRON2_DATASETS": str(tiny_mini), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(CONFIGS / case.config), str(folder), *overrides]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return overrides, folder


@pytest.fixture(scope="module")
def ranks(setting):
    return [torch.load(setting[1] / f"rank{rank}.pth", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(case, setting, ranks, tiny_mini):
    """(losses, gradients) of each rank's batch in this one process, by step and rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
        model, threads = (
            build_model(load_config(str(CONFIGS / case.config), setting[0])).train(),
            torch.get_num_threads(),
        )
        torch.set_num_threads(1)  # as in both processes: sums depend on the number
        try:
            return [[compute(model, rank["steps"][i]) for rank in ranks] for i in range(STEPS)]
        finally:
            torch.set_num_threads(threads)


def compute(model, step):
    model.load_state_dict(step["weights"])
    for name, buffer in model.method.named_buffers():
        buffer.copy_(step["queue"][name])
    torch.set_rng_state(step["random"])
    model.zero_grad()
    batch = {source: samples for source, samples in step["batch"].items() if source != "skipped"}
    with EventStorage(), pytest.MonkeyPatch.context() as patch:
        if "counts" in step:  # CenterNet divides by means over the processes
            patch.setattr(centernet, "comm", SimpleNamespace(get_world_size=lambda: 2))
            patch.setattr(torch.distributed, "all_reduce", lambda counts: counts.copy_(step["counts"]))
        losses = model(batch)
    sum(losses.values()).backward()
    return {k: v.item() for k, v in losses.items()}, gradients(model)


def test_losses_are_each_rank_own_and_logged_as_their_mean(case, ranks, alone):
    lines = [json.loads(line) for line in ranks[0]["metrics"].splitlines()]
    for step, by_rank in enumerate(alone):
        first, second = (rank["steps"][step] for rank in ranks)
        ids = [{d["image_id"] for d in one["batch"]["detection"]} for one in (first, second)]
        assert not ids[0] & ids[1] and len(first["batch"]["mosaics"]) == len(second["batch"]["mosaics"]) == 2
        for rank, (losses, _) in zip((first, second), by_rank, strict=True):
            assert rank["losses"] == pytest.approx(losses, rel=1e-5)
        assert by_rank[0][0][case.loss] != by_rank[1][0][case.loss]
        mean = {name: (first["losses"][name] + second["losses"][name]) / 2 for name in first["losses"]}
        assert {name: lines[step][name] for name in mean} == pytest.approx(mean, rel=1e-6)
        assert len(mean) == case.num_losses


def test_gradients_are_the_clipped_mean_of_the_ranks(ranks, alone):
    lines = [json.loads(line) for line in ranks[0]["metrics"].splitlines()]
    for step, ((_, first), (_, second)) in enumerate(alone):
        for rank in ranks:
            found = rank["steps"][step]["gradients"]
            assert found.keys() == first.keys() and len(found) > 40
            for name in found:
                mean = (first[name] + second[name]) / 2
                torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-6, msg=name)
        free, clipped = (ranks[0]["steps"][step][key] for key in ("gradients", "clipped"))
        norm = torch.stack([g.norm() for g in free.values()]).norm()
        assert norm > 1 and lines[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        for name in free:
            torch.testing.assert_close(clipped[name], free[name] / norm, rtol=1e-3, atol=1e-7)
            torch.testing.assert_close(clipped[name], ranks[1]["steps"][step]["clipped"][name], rtol=0, atol=0)
    weights = [rank["steps"][-1]["weights"] for rank in ranks]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_each_rank_has_its_own_queue(case, ranks):
    """What a rank's batches held, newest first, and nothing of the other's."""
    found = [rank["queue"][f"{case.queue}.image_ids"].tolist() for rank in ranks]
    for rank, stored in zip(ranks, found, strict=True):
        ids = []
        for step in rank["steps"]:
            for source in ("captions", "mosaics"):
                tiles = Tiles.cat([c["tiles"] for c in step["batch"][source]])
                counts = [len(c) if case.all_captions else 1 for c in tiles.captions]
                of_batch = zip(tiles.image_ids.tolist(), counts, strict=True)
                ids = [i for image_id, count in of_batch for i in [image_id] * count] + ids
        assert stored == (ids + [-1] * len(stored))[: len(stored)]
    assert found[0] != found[1]


def test_resuming_restores_each_rank_queue_and_random_state(ranks):
    """Resumed after the first step, a rank stands where it stood before its second."""
    for number, rank in enumerate(ranks):
        before_second, resumed = rank["steps"][1], rank["resumed"]
        assert resumed["start"] == 1 and resumed["file"] == f"iteration_0000000.rank{number}.pth"
        for name, buffer in before_second["queue"].items():
            assert torch.equal(resumed["queue"][name], buffer)
        assert torch.equal(resumed["random"], before_second["random"])
    assert not torch.equal(ranks[0]["resumed"]["random"], ranks[1]["resumed"]["random"])


def test_gathered_captions_equal_the_joined_batch(ranks):
    """Official Detic: the mean of the ranks' losses is the loss of one process with both batches."""
    embeddings, tiles = zip(*(caption_batch(rank) for rank in range(2)), strict=True)
    joined = torch.cat([e.detach() for e in embeddings]).requires_grad_()
    loss, gradient = caption_loss(joined, Tiles.cat(list(tiles)))
    losses, gradients = zip(*(rank["gather"] for rank in ranks), strict=True)
    assert sum(losses) / 2 == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(torch.cat(gradients) / 2, gradient, rtol=1e-4, atol=1e-7)
    own = [caption_loss(e, t)[0] for e, t in zip(embeddings, tiles, strict=True)]
    assert losses[0] > own[0] and losses[1] > own[1]  # the other rank's captions are negatives


def test_accumulated_gradients_are_the_mean_over_ranks_and_batches_exchanged_once(ranks):
    """A layer that only the first batch uses counts too; one that no batch uses has no gradient."""
    mean: dict = {}
    for number, rank in enumerate(ranks):
        model, losses = Layers(), []
        for index in range(2):
            losses.append(model(layer_batch(number, index))["loss"])
            (losses[-1] / 2).backward()
            if index == 0:
                assert rank["accumulated"]["before"].keys() == gradients(model).keys()
                torch.testing.assert_close(rank["accumulated"]["before"], gradients(model), rtol=0, atol=1e-7)
        assert rank["accumulated"]["loss"] == pytest.approx(sum(losses).item() / 2)
        assert rank["accumulated"]["images"] == {"captions": [10 * number, 10 * number + 1]}
        mean = {name: mean.get(name, 0) + g / 2 for name, g in gradients(model).items()}
    assert len(mean) == 4
    for rank in ranks:
        torch.testing.assert_close(rank["accumulated"]["step"], mean, rtol=0, atol=1e-6)
        of_unused = {name: torch.zeros_like(p) for name, p in Layers().named_parameters()}
        torch.testing.assert_close(rank["accumulated"]["from zero"], of_unused | mean, rtol=0, atol=1e-6)


def test_the_average_is_the_same_on_all_ranks(ranks):
    first, second = (rank["average"] for rank in ranks)
    last = ranks[0]["steps"][-1]["weights"]
    assert first.keys() == second.keys() and len(first) > 40
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], last[name]) for name in first)


def test_a_mistake_on_one_rank_stops_all(ranks, setting):
    assert torch.load(setting[1] / "output/model_best.pth")["best"] == {"bbox/AP": 1.0}
    for rank in ranks:
        assert rank["values"] == [(10, 11), (2**40 + 0.1, 2**40 + 0.1)]
        assert rank["best"] == "TEST.BEST_METRIC bbox/AP75 is not evaluated: choose one of bbox/AP."
        assert rank["together"] == "a mistake on process 1" and rank["of both"] == "a mistake on process 0"
        assert "differ in the iteration to start at, [0, 1]" in rank["disagreement"]
        assert ": loss_a = nan; image ids of the batch: {'process 1': {'captions': [1]}}." in rank["not finite loss"]
        both = "{'process 0': {'captions': [0]}, 'process 1': {'captions': [1]}}"
        assert f": gradient norm = nan; image ids of the batch: {both}." in rank["not finite norm"]


if __name__ == "__main__":
    config, output, *overrides = sys.argv[1:]
    launch(main_and_leave, 2, dist_url="auto", args=(config, output, overrides))
