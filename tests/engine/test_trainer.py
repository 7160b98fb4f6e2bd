"""The training loop on a tiny Detic + CLIM run: what it logs, writes, clips and stops at."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from clim.engine import Trainer
from clim.engine.trainer import SkippedImages, check_finite
from clim.errors import UserError

LOSSES = {
    "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc",
    "loss_caption", "loss_tag", "loss_caption_mosaic", "loss_tag_mosaic",
}  # fmt: skip


def started(cfg):
    """A trainer about to take its first step."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.iter = 0
    return trainer


def metrics_of(folder):
    by_iteration = {}
    for line in (Path(folder) / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        by_iteration.setdefault(entry["iteration"], {}).update(entry)
    return by_iteration


def test_a_run_leaves_its_losses_figures_and_checkpoints(tiny_cfg, caplog):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "SOLVER.AMP.ENABLED", True)
    evaluated_at = []
    with caplog.at_level(logging.INFO, "clim"):
        trainer = started(cfg)
        before = {name: p.clone() for name, p in trainer.raw_model.named_parameters() if p.requires_grad}
        after_step = trainer.after_step

        def watched():
            after_step()
            evaluated_at.append((trainer.iter, (Path(cfg.OUTPUT_DIR) / "evaluation.json").exists()))

        trainer.after_step = watched
        trainer.train()

    assert caplog.text.count("Mixed precision needs CUDA: training in float32.") == 1
    metrics = metrics_of(cfg.OUTPUT_DIR)
    for iteration in range(4):
        entry = metrics[iteration]
        losses = {name for name in entry if name.startswith("loss_")}
        assert losses == LOSSES
        assert entry["total_loss"] == pytest.approx(sum(entry[name] for name in losses))
        assert entry["grad_norm"] > 0 and entry["lr"] > 0 and entry["skipped_images"] == 0
    assert "bbox/AP50_novel" in metrics[1] and "bbox/AP50_novel" in metrics[4]
    assert evaluated_at == [(0, False), (1, True), (2, True), (3, True)]

    after = dict(trainer.raw_model.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    output = Path(cfg.OUTPUT_DIR)
    figures = json.loads((output / "evaluation.json").read_text())
    assert {"AP50_novel", "AP50_base", "AP50_all"} < set(figures)
    assert figures["AP50_all"] == pytest.approx(metrics[4]["bbox/AP50_all"])
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert list(output.glob("events.out.tfevents.*"))
    stored = torch.load(output / "model_final.pth")
    assert not any(name.startswith("method.queue") or "text_encoder" in name for name in stored["model"])


def test_a_divergence_in_detectron2s_rpn_names_the_images(tiny_cfg):
    trainer = started(tiny_cfg("SOLVER.MAX_ITER", 1))
    with torch.no_grad():
        for parameter in trainer.raw_model.proposal_generator.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(UserError, match="Iteration 0: .*Inf/NaN.*image ids of the batch: .*detection"):
        trainer.train()


@pytest.mark.parametrize("first, second", [([], [-20.0]), ([-20.0], [])])
def test_resuming_with_another_model(tiny_cfg, first, second):
    key = "MODEL.METHOD.DETIC.BIAS"
    started(tiny_cfg("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()", key, first)).train()
    with pytest.raises(UserError, match="checkpoint in .* belongs to another config .*or choose another OUTPUT_DIR"):
        Trainer(tiny_cfg("SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()", key, second)).resume_or_load(resume=True)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tiny_cfg, limit):
    trainer = started(tiny_cfg("SOLVER.MAX_ITER", 1, "SOLVER.CLIP_GLOBAL_NORM", limit))
    parameter = next(p for p in trainer.raw_model.parameters() if p.requires_grad)
    before = {n: p.detach().clone() for n, p in trainer.raw_model.named_parameters()}
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="Iteration 0: gradient norm = nan"):
        trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainer.raw_model.named_parameters())
    assert not (Path(trainer.cfg.OUTPUT_DIR) / "evaluation.json").exists()


def gradients_after(trainer, monkeypatch):
    """Gradients as the optimiser gets them in one step, and their global norm."""
    met = {}

    def step(*args, **kwargs):
        met.update({n: p.grad.clone() for n, p in trainer.raw_model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(trainer.optimizer, "step", step)
    with EventStorage() as trainer.storage:
        trainer.run_step()
        logged = trainer.storage.latest().get("grad_norm", (None,))[0]
    return met, torch.stack([g.norm() for g in met.values()]).norm().item(), logged


def seeded(cfg):
    torch.manual_seed(0)
    return started(cfg)


def test_clipping_is_by_the_norm_of_all_gradients_together(tiny_cfg, monkeypatch):
    free, norm, logged = gradients_after(seeded(tiny_cfg("SOLVER.CLIP_GLOBAL_NORM", 0.0)), monkeypatch)
    assert logged == pytest.approx(norm, rel=1e-4) and norm > 1
    clipped, clipped_norm, logged = gradients_after(seeded(tiny_cfg("SOLVER.CLIP_GLOBAL_NORM", 0.5)), monkeypatch)
    assert logged == pytest.approx(norm, rel=1e-4)
    assert clipped_norm == pytest.approx(0.5, rel=1e-4)
    assert clipped.keys() == free.keys()
    for name in free:
        torch.testing.assert_close(clipped[name], free[name] * (0.5 / norm), rtol=1e-3, atol=1e-7)


def test_alternating_sources_keep_momentum_going(tiny_cfg, monkeypatch):
    """Official Detic: in an iteration of pairs the box head's gradient is zero, not absent."""
    cfg = tiny_cfg("DATALOADER.MOSAICS_PER_GPU", 0, "DATALOADER.ALTERNATE", "(1, 1)", "SOLVER.MAX_ITER", 8)
    trainer = started(cfg)
    weight = trainer.raw_model.roi_heads.box_predictor.bbox_pred[0].weight
    history = []
    step = trainer.run_step

    def watched():
        before = weight.detach().clone()
        step()
        history.append((weight.grad is not None and bool(weight.grad.any()), not torch.equal(before, weight)))

    trainer.run_step = watched
    trainer.train()
    sources = [{name for name in entry if name.startswith("loss_")} for entry in metrics_of(cfg.OUTPUT_DIR).values()]
    boxes = ["loss_box_reg" in s for s in sources if s]
    assert {True, False} == set(boxes)
    assert [has_gradient for has_gradient, _ in history] == boxes
    first = boxes.index(True)
    assert all(moved for _, moved in history[first:])


def test_evaluation_draws_no_random_numbers_of_the_training(tiny_cfg, drawn):
    trainer = started(tiny_cfg())
    seed_all_rng(1)
    expected = drawn()
    seed_all_rng(1)
    trainer.evaluate()
    assert drawn() == expected
    assert trainer.model.training


def test_losses_and_gradients_that_are_not_finite():
    mosaic = {"tiles": SimpleNamespace(image_ids=torch.tensor([5, 6]))}
    batch = {"detection": [{"image_id": 4}], "captions": [], "mosaics": [mosaic]}
    check_finite({"loss_cls": torch.tensor(1.0)}, 3.0, batch, 7)
    ids = r"\{'detection': \[4\], 'mosaics': \[\[5, 6\]\]\}"
    with pytest.raises(UserError, match=rf"Iteration 7: gradient norm = nan; .*{ids}"):
        check_finite({"loss_cls": torch.tensor(1.0)}, float("nan"), batch, 7)
    losses = {"loss_cls": torch.tensor(torch.nan), "loss_box": torch.tensor(1.0), "loss_tag": torch.tensor(torch.inf)}
    with pytest.raises(UserError, match=r"7: loss_cls = nan, loss_tag = inf;") as caught:
        check_finite(losses, 1.0, batch, 7)
    assert "\n" not in str(caught.value)


def test_skipped_images_are_counted_logged_once_and_listed(tmp_path, caplog):
    hook = SkippedImages(str(tmp_path))
    hook.after_train()
    assert list(tmp_path.iterdir()) == []
    written = {}
    hook.trainer = SimpleNamespace(
        storage=SimpleNamespace(put_scalar=lambda name, value, **_: written.update({name: value}))
    )
    hook.add([("b.jpg", "empty file"), ("a.jpg", "truncated")])
    hook.add([("a.jpg", "truncated")])
    hook.after_step()
    assert written == {"skipped_images": 3}
    assert [m for m in caplog.messages if "a.jpg" in m] == ["Image replaced by another one: a.jpg (truncated)"]
    hook.after_train()
    listed = (tmp_path / "skipped_images.rank0.txt").read_text()
    assert listed == "a.jpg\ttruncated\t2\nb.jpg\tempty file\t1\n"
