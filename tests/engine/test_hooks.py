"""Checkpoints in time, what stays of them, and the report of unreadable pictures."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clim.engine.checkpoint import SafeCheckpointer
from clim.engine.hooks import CheckpointHook, SkippedImages
from clim.engine.rank_state import rank_state_path


def run(folder, *, start=0, until, total, **options):
    """A training of ``total`` iterations that only writes checkpoints, cut off before iteration ``until``."""
    options = {"period": 2, "keep": 2, "extra": {"data_seed": 5}} | options
    hook = CheckpointHook(SafeCheckpointer(nn.Linear(1, 1), str(folder)), start_iter=start, **options)
    hook.trainer = SimpleNamespace(max_iter=total)
    for hook.trainer.iter in range(start, until):
        hook.after_step()


def files(folder):
    return sorted(p.name for p in folder.glob("*.pth")), sorted(p.name for p in (folder / "rank_states").iterdir())


def test_the_newest_checkpoints_stay_with_their_rank_states(tmp_path):
    run(tmp_path, until=9, total=9)
    assert files(tmp_path) == (
        ["model_0000005.pth", "model_0000007.pth", "model_final.pth"],
        [f"iteration_{i:07d}.rank0.pth" for i in (5, 7, 8)],
    )
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    stored = torch.load(tmp_path / "model_final.pth")
    assert stored["iteration"] == 8 and stored["data_seed"] == 5


def test_a_resumed_run_goes_on_counting(tmp_path):
    run(tmp_path, until=5, total=9)
    assert files(tmp_path)[0] == ["model_0000001.pth", "model_0000003.pth"]
    run(tmp_path, start=4, until=9, total=9)
    assert files(tmp_path)[0] == ["model_0000005.pth", "model_0000007.pth", "model_final.pth"]


def test_checkpoints_of_another_run_are_left_alone(tmp_path):
    torch.save({}, tmp_path / "model_0000099.pth")
    torch.save({}, tmp_path / "model_best.pth")
    run(tmp_path, until=9, total=9)
    assert {"model_0000099.pth", "model_best.pth"} < set(files(tmp_path)[0])


def test_keeping_all_and_writing_only_the_last(tmp_path):
    run(tmp_path / "all", until=9, total=9, keep=0)
    assert len(files(tmp_path / "all")[0]) == 5
    (tmp_path / "last").mkdir()
    run(tmp_path / "last", until=9, total=9, period=0)
    assert files(tmp_path / "last") == (["model_final.pth"], ["iteration_0000008.rank0.pth"])


def test_the_rank_state_is_written_first(tmp_path, monkeypatch):
    """So that a checkpoint that is there always has its rank states."""

    def killed(self, name, **kwargs):
        assert rank_state_path(tmp_path, 1).is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(SafeCheckpointer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, until=2, total=9)
    assert not (tmp_path / "last_checkpoint").exists()


def test_skipped_images_are_counted_logged_once_and_listed(tmp_path, caplog):
    hook = SkippedImages(str(tmp_path))
    written = {}
    hook.trainer = SimpleNamespace(
        storage=SimpleNamespace(put_scalar=lambda name, value, **_: written.update({name: value}))
    )
    hook.add([("b.jpg", "empty file"), ("a.jpg", "truncated")])
    hook.add([("a.jpg", "truncated")])
    hook.after_step()
    assert written == {"skipped_images": 3}
    assert [m for m in caplog.messages if "a.jpg" in m] == ["Picture replaced by another one: a.jpg (truncated)"]
    hook.after_train()
    listed = (tmp_path / "skipped_images.rank0.txt").read_text()
    assert listed == "a.jpg\ttruncated\t2\nb.jpg\tempty file\t1\n"


def test_nothing_skipped_leaves_no_file(tmp_path):
    SkippedImages(str(tmp_path)).after_train()
    assert list(tmp_path.iterdir()) == []
