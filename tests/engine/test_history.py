"""metrics.json of one run."""

from clim.engine.history import cut_metrics, put_earlier_run_aside


def test_a_new_run_puts_the_earlier_one_aside(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n')
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    put_earlier_run_aside(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["previous.last_checkpoint", "previous.metrics.json"]
    put_earlier_run_aside(tmp_path)
    assert (tmp_path / "previous.metrics.json").read_text() == '{"iteration": 1}\n'


def test_a_resumed_run_cuts_what_it_repeats(tmp_path):
    cut_metrics(tmp_path, start_iter=3)
    assert list(tmp_path.iterdir()) == []
    lines = ['{"iteration": 1, "total_loss": 0.1}\n', '{"iteration": 2}\n', '{"iteration": 3}\n', '{"iterat']
    (tmp_path / "metrics.json").write_text("".join(lines))
    cut_metrics(tmp_path, start_iter=3)
    assert (tmp_path / "metrics.json").read_text() == "".join(lines[:2])
