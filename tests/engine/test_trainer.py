"""The training loop on a tiny Detic + CLIM run: what it logs, writes, clips and stops at."""

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from clim.engine import Trainer
from clim.engine.trainer import SkippedImages, check_finite, compile_trunk, image_ids
from clim.errors import UserError
from clim.files import read_json
from mini.lvis import build_mini_lvis

LOSSES = {
    "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc",
    "loss_caption", "loss_tag", "loss_caption_mosaic", "loss_tag_mosaic",
}  # fmt: skip


def started(cfg):
    """A trainer before its first step."""
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.iter = 0
    return trainer


def losses_in(entry):
    return {name for name in entry if name.startswith("loss_")}


def test_a_run_leaves_its_losses_figures_and_checkpoints(tiny_cfg, metrics_of, caplog):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "SOLVER.AMP.ENABLED", True)
    output, evaluated_at = Path(cfg.OUTPUT_DIR), []
    with caplog.at_level(logging.INFO, "clim"):
        trainer = started(cfg)
        before = {name: p.clone() for name, p in trainer.raw_model.named_parameters() if p.requires_grad}
        after_step = trainer.after_step

        def watched():
            after_step()
            evaluated_at.append((output / "evaluation.json").exists())

        trainer.after_step = watched
        trainer.train()

    assert caplog.text.count("Mixed precision in float16 needs CUDA: training in float32.") == 1
    metrics = metrics_of(output)
    for iteration in range(4):
        entry = metrics[iteration]
        assert losses_in(entry) == LOSSES
        assert entry["total_loss"] == pytest.approx(sum(entry[name] for name in LOSSES))
        assert entry["grad_norm"] > 0 and entry["lr"] > 0 and entry["skipped_images"] == 0
    assert "bbox/AP50_novel" in metrics[1] and evaluated_at == [False, True, True, True]
    after = dict(trainer.raw_model.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    figures = read_json(output / "evaluation.json", remedy="")
    assert {"AP50_novel", "AP50_base", "AP50_all"} < set(figures)
    assert figures["AP50_all"] == pytest.approx(metrics[4]["bbox/AP50_all"])
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert list(output.glob("events.out.tfevents.*"))
    stored = torch.load(output / "model_final.pth")
    assert not any(name.startswith("method.queue") or "text_encoder" in name for name in stored["model"])


class Toy(nn.Module):
    """Two losses, which are means over the batch's samples."""

    def __init__(self):
        super().__init__()
        self.net, self.updates = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), 0
        self.method = SimpleNamespace(after_update=lambda: setattr(self, "updates", self.updates + 1))

    def forward(self, batch):
        losses = self.net(torch.stack([sample["x"] for sample in batch["detection"]])).square().mean(dim=0)
        return {"loss_a": losses[0], "loss_b": 3 * losses[1]}


@pytest.mark.parametrize("number, limit", [(1, 0.0), (3, 0.0), (3, 0.01)])
def test_a_step_of_several_batches_is_a_step_of_the_joined_batch(tiny_cfg, number, limit):
    trainer = started(tiny_cfg("SOLVER.ACCUMULATE", number, "SOLVER.CLIP_GLOBAL_NORM", limit))
    trainer.model = trainer.raw_model = toy = Toy()
    trainer.optimizer = torch.optim.SGD(toy.parameters(), lr=0.5)
    before = [p.detach().clone() for p in toy.parameters()]
    samples = [{"image_id": i, "x": torch.randn(4)} for i in range(2 * number)]
    joined = toy({"detection": samples})
    gradients = torch.autograd.grad(sum(joined.values()), list(toy.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    batches = [{"detection": samples[i : i + 2], "skipped": [("a.jpg", "missing")]} for i in range(0, len(samples), 2)]
    trainer.loader = iter(batches)
    with EventStorage() as trainer.storage:
        trainer.run_step()
        trainer.skipped.trainer = trainer
        trainer.skipped.after_step()
        logged = {name: value for name, (value, _) in trainer.storage.latest().items()}
    for parameter, old, gradient in zip(toy.parameters(), before, gradients, strict=True):
        expected = gradient * (limit / norm if limit else 1)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parameter.detach(), old - 0.5 * parameter.grad)
    assert {name: logged[name] for name in joined} == pytest.approx({k: v.item() for k, v in joined.items()})
    assert logged["grad_norm"] == pytest.approx(norm.item()) and norm > 0.01
    assert logged["skipped_images"] == number and toy.updates == 1 and next(trainer.loader, None) is None


# ---- mixed precision, torch.compile, the layout of convolutions

MORE = ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 4096)  # no sampling
SMALL = ("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN", 40)
CONFIGS = {
    "detic_clim": (), "baron_clim": (), "vldet_clim": (), "ovrcnn": (), "ovrcnn_clim_pretrain": (), "clip_clim": (),
    "fvlm": ("MODEL.IMAGE_ENCODER.PRETRAINED", ""), "clip_region_clip": (), "lvis_detic_clim": SMALL,
}  # fmt: skip
# Those that draw other proposals or boxes in half precision, and their losses that do not depend on the draw.
DRAWING = dict.fromkeys(("baron_clim", "fvlm"), ("loss_rpn", "loss_cls"))
DRAWING["lvis_detic_clim"] = ("loss_centernet", "loss_mask")


@pytest.fixture
def first_step(tiny_cfg, tiny_mini, request):
    """``first_step(config of configs/mini, KEY, value, …)``: trainer, losses and gradients before the first update."""

    def step(name, *keys):
        keys = (*MORE, *CONFIGS[name], *keys)
        if name == "clip_region_clip":
            keys += tuple(request.getfixturevalue("region_overrides"))
        if name.startswith("lvis"):
            build_mini_lvis(tiny_mini, seed=7, num_train=24, num_val=1, num_pairs=16, workers=1)
        seed_all_rng(1)
        trainer = Trainer(tiny_cfg(*keys, config=f"mini/{name}.yaml"))
        trainer.resume_or_load(resume=False)
        trainer.model.train()
        losses, forward = {}, trainer.raw_model.forward
        trainer.raw_model.forward = lambda batch: losses.update(forward(batch)) or losses
        seed_all_rng(2)
        with EventStorage() as trainer.storage:
            trainer.accumulate()
        trainer.raw_model.forward = forward
        return trainer, losses, {n: p.grad for n, p in trainer.raw_model.named_parameters() if p.grad is not None}

    return step


@pytest.mark.parametrize("name", [n if n == "detic_clim" else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS])
def test_bfloat16_losses_are_float32_and_near_those_of_float32(first_step, name):
    found = []
    for enabled in (False, True):
        trainer, losses, gradients = first_step(name, "SOLVER.AMP.ENABLED", enabled, "SOLVER.AMP.DTYPE", "bfloat16")
        tensors = [*losses.values(), *gradients.values()]
        assert not trainer.scaler.is_enabled() and all(t.dtype == torch.float32 for t in tensors)
        assert all(t.isfinite().all() for t in tensors)
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        found.append({n: loss.item() for n, loss in losses.items()} | {"norm": norm.item()})
    assert found[0] != found[1]
    found = [{n: v for n, v in of.items() if n.startswith(DRAWING.get(name, ""))} for of in found]
    assert found[0] and found[1] == pytest.approx(found[0], rel=0.05, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detic_clim", "ovrcnn_clim_pretrain", "clip_clim", "fvlm", "lvis_detic_clim"])
def test_whole_graphs_are_compiled_for_training_and_none_for_evaluation(first_step, monkeypatch, name):
    """With torch's tracing alone: code for a CPU takes minutes."""
    graphs: list = []
    keep = lambda graph, _: graphs.append(graph) or graph  # noqa: E731
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    torch._dynamo.reset()
    (one, losses, gradients), (two, *found) = (first_step(name, "MODEL.COMPILE", on) for on in (False, True))
    torch.testing.assert_close(found, [losses, gradients], rtol=0, atol=0)
    assert one.raw_model.state_dict().keys() == two.raw_model.state_dict().keys()
    assert 1 <= len(graphs) <= 2 and not torch._dynamo.utils.counters["graph_break"]
    count = len(graphs)
    two.evaluate()
    assert len(graphs) == count


@pytest.mark.slow
def test_compiled_code_gives_the_results_of_the_code():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    layers.embed_images = layers.forward
    images = [torch.randn(2, 3, *size) for size in ((16, 24), (20, 12))]
    for part, call in (("backbone", layers), ("image_encoder", lambda x: layers.embed_images(x))):
        model = nn.Module()
        model.add_module(part, layers)
        expected, names = [call(x) for x in images], list(model.state_dict())
        compile_trunk(model)
        torch.testing.assert_close([call(x) for x in images], expected)
        assert list(model.state_dict()) == names


def test_the_layout_of_convolutions_changes_no_result(first_step):
    steps = (first_step("detic_clim", "MODEL.CHANNELS_LAST", on) for on in (False, True))
    (_, losses, gradients), (trainer, *found) = steps
    torch.testing.assert_close(found, [losses, gradients], rtol=1e-3, atol=1e-4)
    kernels = [p for p in trainer.raw_model.backbone.parameters() if p.ndim == 4 and p[0, 0].numel() > 1 < p.shape[1]]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


# ---- losses and gradients that are not finite


def infinite_loss(trainer):
    weight = trainer.raw_model.method.caption_weight
    trainer.raw_model.method.caption_weight = weight * float("inf")


def infinite_gradient(trainer):
    parameter = next(p for p in trainer.raw_model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("nan"))


def infinite_proposals(trainer):
    """Detectron2's RPN finds them before there is a loss."""
    trainer.raw_model.proposal_generator.rpn_head.register_forward_hook(
        lambda head, inputs, found: tuple([x * float("nan") for x in level] for level in found)
    )


@pytest.mark.parametrize(
    "break_it, limit, named",
    [
        (infinite_loss, 0.0, "loss_caption = inf"),
        (infinite_gradient, 0.0, "gradient norm = nan"),
        (infinite_gradient, 1.0, "gradient norm = nan"),
        (infinite_proposals, 0.0, "Inf/NaN"),
    ],
)
def test_what_is_not_finite_stops_a_training_and_never_reaches_the_weights(tiny_cfg, break_it, limit, named):
    trainer = started(tiny_cfg("SOLVER.MAX_ITER", 1, "SOLVER.CLIP_GLOBAL_NORM", limit))
    before = {n: p.detach().clone() for n, p in trainer.raw_model.named_parameters()}
    break_it(trainer)
    with pytest.raises(UserError, match=rf"Iteration 0: .*{named}.*image ids of the batch: \{{'detection': \[\d"):
        trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainer.raw_model.named_parameters())
    assert not (Path(trainer.cfg.OUTPUT_DIR) / "evaluation.json").exists()


def test_the_error_names_the_images_of_all_batches_of_the_step(tiny_cfg):
    trainer = started(tiny_cfg("SOLVER.MAX_ITER", 1, "SOLVER.ACCUMULATE", 2))
    infinite_loss(trainer)
    with pytest.raises(UserError, match=r"ids of the batch: \{'detection': \[\d+, \d+, \d+, \d+\], 'captions': \["):
        trainer.train()


def test_the_error_names_all_losses_and_images():
    mosaic = {"tiles": SimpleNamespace(image_ids=torch.tensor([5, 6]))}
    batch = {"detection": [{"image_id": 4}], "captions": [], "mosaics": [mosaic]}
    images = image_ids(batch)
    check_finite({"loss_cls": 1.0}, images, 7)
    losses = {"loss_cls": torch.nan, "loss_box": 1.0, "loss_tag": torch.inf}
    ids = r"\{'detection': \[4\], 'mosaics': \[\[5, 6\]\]\}"
    with pytest.raises(UserError, match=rf"7: loss_cls = nan, loss_tag = inf; .*{ids}") as caught:
        check_finite(losses, images, 7)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first, second", [([], [-20.0]), ([-20.0], [])])
def test_resuming_with_another_model(tiny_cfg, first, second):
    key = "MODEL.METHOD.DETIC.BIAS"
    started(tiny_cfg("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()", key, first)).train()
    with pytest.raises(UserError, match="optimizer does not fit, in .*model_final.pth .*or choose another OUTPUT_DIR"):
        Trainer(tiny_cfg("SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()", key, second)).resume_or_load(resume=True)


FIRST_TAKES_PAIRS = 2  # a seed


def test_alternating_sources_keep_momentum_going(tiny_cfg, metrics_of):
    """Official Detic: in an iteration of pairs the box head's gradient is zero, not absent. A single loss is logged."""
    alternate = ("DATALOADER.MOSAICS_PER_GPU", 0, "DATALOADER.ALTERNATE", "(1, 1)", "SOLVER.MAX_ITER", 8)
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value")
    cfg = tiny_cfg(*alternate, *clip, "MODEL.METHOD.DETIC.CAPTION_WEIGHT", 0.0, "SEED", FIRST_TAKES_PAIRS)
    trainer = started(cfg)
    weight = trainer.raw_model.roi_heads.box_predictor.bbox_pred[0].weight
    history, step = [], trainer.run_step

    def watched():
        before = weight.detach().clone()
        step()
        history.append((bool(weight.grad.any()), not torch.equal(before, weight)))

    trainer.run_step = watched
    trainer.train()
    logged = [e for e in metrics_of(cfg.OUTPUT_DIR).values() if losses_in(e)]
    assert all(losses_in(e) == {"loss_tag"} for e in logged if "loss_box_reg" not in e)
    assert all(e["loss_tag"] == e["total_loss"] for e in logged if "loss_box_reg" not in e)
    boxes = ["loss_box_reg" in e for e in logged]
    assert {True, False} == set(boxes) and [has_gradient for has_gradient, _ in history] == boxes
    assert not boxes[0] and all(moved for _, moved in history[boxes.index(True) :])


def test_evaluation_draws_no_random_numbers_of_the_training(tiny_cfg, drawn):
    trainer = started(tiny_cfg())
    seed_all_rng(1)
    expected = drawn()
    seed_all_rng(1)
    trainer.evaluate()
    assert drawn() == expected and trainer.model.training


def test_skipped_images_are_counted_logged_once_and_listed(tmp_path, caplog):
    hook = SkippedImages(str(tmp_path))
    hook.after_train()
    assert list(tmp_path.iterdir()) == []
    hook.add([("b.jpg", "empty file"), ("a.jpg", "truncated")])
    hook.add([("a.jpg", "truncated")])
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        hook.after_step()
        assert storage.latest()["skipped_images"][0] == 3
    assert len([m for m in caplog.messages if "a.jpg" in m]) == 1
    hook.after_train()
    listed = (tmp_path / "skipped_images.rank0.txt").read_text()
    assert listed == "a.jpg\ttruncated\t2\nb.jpg\tempty file\t1\n"
