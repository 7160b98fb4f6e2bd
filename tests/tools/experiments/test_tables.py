"""Rows wait for what they start from, share runs of the same settings, and become lines of a table."""

import hashlib
import json
import signal
import threading
import time

import pytest

from clim.errors import UserError
from clim_commands.main import main
from experiments import rows
from experiments.rows import Row, datasets_of, run_rows
from experiments.run_files import Progress
from experiments.tables import Entry, Table, markdown, report
from experiments.training import Busy

START = Row("start.yaml")
FIRST = Row("tuned.yaml", ("A.B", 1), starts_from=(("MODEL.WEIGHTS", START, "model_final.pth"),))
LAST = Row("last.yaml", starts_from=(("MODEL.ENCODER", FIRST, "clip.pt"),), needs=(START,))


@pytest.fixture
def ran(monkeypatch):
    """What was trained, in the order in which it was finished."""
    trained, lock = [], threading.Lock()

    def run_training(config, *, output, overrides, datasets_root, progress):
        with lock:
            trained.append((config.name, output, overrides, datasets_root))

    monkeypatch.setattr(rows, "run_training", run_training)
    return trained


@pytest.fixture(autouse=True)
def configs(monkeypatch):
    """Rows of this file have no config; a record holds the row's name and seed in its place."""
    monkeypatch.setattr(rows, "config_of_run", lambda row, output, seed: f"{row.config}, seed {seed}")


def no_set_up(root, *, seed):
    pass


def table_of(*entries, **more):
    entries = [Entry(name, row) for name, row in entries]
    return Table("2a", "rows", entries, **{"metrics": {"AP": "AP50"}, "set_up": no_set_up} | more)


def finish(output, row, seed, **figures):
    folder = row.folder(output, seed)
    folder.mkdir(parents=True)
    settings = {"config": f"{row.config}, seed {seed}", "inputs": {}}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "seconds": 1.0, "results": figures}))


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_row_is_trained_once_after_what_it_needs(tmp_path, ran, jobs):
    made = []

    def set_up(root, *, seed):
        made.append((root, seed))

    wanted = [(LAST, [0, 1], set_up), (START, [0, 1], no_set_up), (FIRST, [0], set_up), (FIRST, [0], set_up)]
    run_rows(wanted, output=tmp_path, jobs=jobs)
    assert made == [(datasets_of(tmp_path, seed), seed) for seed in (0, 1)]
    for seed in (0, 1):
        of_seed = [(name, overrides) for name, _, overrides, root in ran if root == datasets_of(tmp_path, seed)]
        assert [name for name, _ in of_seed] == ["start.yaml", "tuned.yaml", "last.yaml"]
        assert of_seed[0][1] == ["SEED", seed]
        weights = str(START.folder(tmp_path, seed) / "model_final.pth")
        assert of_seed[1][1] == ["SEED", seed, "MODEL.WEIGHTS", weights, "A.B", 1]
        assert of_seed[2][1] == ["SEED", seed, "MODEL.ENCODER", str(FIRST.folder(tmp_path, seed) / "clip.pt")]
    assert len({output for _, output, _, _ in ran}) == len(ran) == 6


def test_no_worker_waits_for_a_run_that_has_not_begun(tmp_path, ran):
    """What others start from comes first, whatever the order of rows; a row is prepared before its training."""
    other = Row("other.yaml", starts_from=(("MODEL.WEIGHTS", Row("more.yaml"), "model_final.pth"),))
    run_rows([(LAST, [0, 1], no_set_up), (other, [0], no_set_up)], output=tmp_path, jobs=1)
    order = "start start more tuned tuned other last last".split()
    assert [name for name, *_ in ran] == [f"{name}.yaml" for name in order]
    seen = []
    row = Row("x.yaml", prepare=lambda output, seed: seen.append((output, seed, len(ran))))
    run_rows([(row, [3], no_set_up)], output=tmp_path, jobs=1)
    assert seen == [(tmp_path, 3, 8)] and len(ran) == 9
    starts = [Row("first.yaml", overrides) for overrides in ((), ("A.B", "C"), ("A.B", "D"))]
    second = [Row("second.yaml", starts_from=(("MODEL.WEIGHTS", start, "model_final.pth"),)) for start in starts]
    assert len({row.folder(tmp_path, 0) for row in second}) == 3  # other starts are other runs


def test_a_failure_ends_what_starts_from_it_alone_and_an_interrupt_ends_all(tmp_path, monkeypatch):
    """Ctrl-C reaches the main thread while trainings run in others."""
    begun, main_thread = [], threading.main_thread().ident

    def run_training(config, *, output, progress, **others):
        begun.append(config.name)
        if config.name == "start.yaml":
            raise UserError("start.yaml failed")
        if config.name == "long.yaml":
            signal.pthread_kill(main_thread, signal.SIGINT)
            while True:
                progress(Progress("training"))
                time.sleep(0.01)

    monkeypatch.setattr(rows, "run_training", run_training)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(UserError, match="^start.yaml failed$"):
        run_rows([(LAST, [0], no_set_up), (Row("other.yaml"), [0], no_set_up)], output=tmp_path, jobs=1)
    assert begun == ["start.yaml", "other.yaml"]
    with pytest.raises(KeyboardInterrupt):
        run_rows([(Row(f"{name}.yaml"), [0], no_set_up) for name in ("long", "more")], output=tmp_path, jobs=1)
    assert begun == ["start.yaml", "other.yaml", "long.yaml"]


def test_a_row_waits_for_a_training_that_outlived_its_command(tmp_path, monkeypatch):
    answers = [Busy("still writing"), Busy("still writing"), None]

    def run_training(*args, **options):
        if answer := answers.pop(0):
            raise answer

    monkeypatch.setattr(rows, "run_training", run_training)
    monkeypatch.setattr(rows, "POLL_SECONDS", 0.01)
    run_rows([(START, [0], no_set_up)], output=tmp_path, jobs=1)
    assert answers == []


def test_a_table_shows_what_has_been_run(tmp_path):
    for seed, ap in ((0, 1.0), (2, 4.0)):
        finish(tmp_path, FIRST, seed, AP=ap, AR=5.0)
    metrics = {"AP": "AP50", "AR": "recall"}
    assert markdown(
        table_of(("first", FIRST), ("start", START), metrics=metrics), output=tmp_path, seeds=[0, 1, 2]
    ) == [
        "| | AP50 | recall | AP50, by seed |",
        "|---|---|---|---|",
        "| first | 2.5 ± 2.1 (2) | 5.0 ± 0.0 (2) | 1.0, –, 4.0 |",
        "| start | not run | not run | –, –, – |",
        "",
        "`clim reproduce --scale mini --table 2a`; seeds 0, 2.",
    ]
    row = markdown(table_of(("first", FIRST), metrics=metrics), output=tmp_path, seeds=[0])[2]
    assert row == "| first | 1.0 | 5.0 | 1.0 |"
    record = FIRST.folder(tmp_path, 2) / "results.json"
    record.write_text(record.read_text().replace("tuned.yaml", "earlier.yaml"))  # it would be trained anew
    lines = markdown(table_of(("first", FIRST)), output=tmp_path, seeds=[0, 2])
    assert lines[2] == "| first | 1.0 | 1.0, – |" and lines[-1].endswith("seed 0.")

    def figures(found, root):
        return {"x": found["AP"] + len(root.name)}

    more = table_of(("first", FIRST), metrics={"x": "x"}, figures=figures)
    assert markdown(more, output=tmp_path, seeds=[0, 1])[2] == "| first | 9.0 | 9.0, – |"  # 1 + len("datasets")


def test_a_row_without_an_evaluation_is_finished_when_its_record_says_so(tmp_path):
    finish(tmp_path, START, 0)
    assert rows.finished(START, tmp_path, 0)["results"] == {} and rows.finished(START, tmp_path, 1) is None
    record = START.folder(tmp_path, 0) / "results.json"
    record.write_text(record.read_text().replace('"results": {}', '"results": null'))
    assert rows.finished(START, tmp_path, 0) is None


def test_a_row_from_a_checkpoint_that_has_changed_is_not_finished(tmp_path):
    finish(tmp_path, FIRST, 0, AP=1.0)
    record = FIRST.folder(tmp_path, 0) / "results.json"
    start = START.folder(tmp_path, 0) / "model_final.pth"
    digest = hashlib.sha256(b"weights").hexdigest()
    record.write_text(record.read_text().replace('"inputs": {}', f'"inputs": {{"start/model_final.pth": "{digest}"}}'))
    assert rows.finished(FIRST, tmp_path, 0)  # the checkpoint may have been removed
    start.parent.mkdir()
    for content, same in ((b"weights", True), (b"others", False)):
        start.write_bytes(content)
        assert (rows.finished(FIRST, tmp_path, 0) is not None) == same


def test_figures_stand_beside_the_papers(tmp_path):
    """Each scale shows its own rows; quoted ones stand at full size, and a line says what has been run, and on what."""
    for row, seed, machine in ((START, 0, "8 x A100"), (FIRST, 1, "8 x H100")):
        finish(tmp_path, row, seed, bbox=20.04, AP=10.0)
        record = tmp_path / row.folder(tmp_path, seed) / "results.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"commit": "abc+", "machine": machine}))
    entries = (
        Entry("both", START, START, {"AP50": 21.0}),
        Entry("mini alone", FIRST),
        Entry("full alone", full=FIRST, published={"AP50": 22}),
        Entry("theirs", published={"AP50": 23.26}),
        Entry("unknown"),
    )
    table = Table("1b", "rows", entries, {"AP": "AP50"}, no_set_up, full_metrics={"bbox": "AP50", "AP": "AP"})
    assert table.rows("mini") == table.rows("full") == [START, FIRST]
    assert markdown(table, output=tmp_path, seeds=[0, 1], scale="full") == [
        "| | AP50 | AP50, paper | AP | AP50, by seed |",
        "|---|---|---|---|---|",
        "| both | 20.0 | 21.0 | 10.0 | 20.0, – |",
        "| full alone | 20.0 | 22.0 | 10.0 | –, 20.0 |",
        "| theirs (quoted) |  | 23.3 |  |  |",
        "| unknown (quoted; figure not verified here) |  |  |  |  |",
        "",
        "`clim reproduce --scale full --table 1b`; commit abc+; seeds 0, 1; on 8 x A100, 8 x H100.",
    ]
    assert markdown(table, output=tmp_path, seeds=[0])[:4] == [
        "| | AP50 | AP50, paper | AP50, by seed |",
        "|---|---|---|---|",
        "| both | 10.0 | 21.0 | 10.0 |",
        "| mini alone | not run |  | – |",
    ]
    own = table._replace(name="own")
    headings = [one.heading(scale) for one in (table, own) for scale in ("mini", "full")]
    assert headings == ["Mini Table 1b: rows", "Table 1b: rows", "Rows", "Rows, full size"]


def test_a_paired_line_shows_differences_within_seeds(tmp_path):
    """By hand, without seed 3: 5, 0 and -2 have mean 1 and deviation √13; t of 2 degrees of freedom is 4.3027."""
    for seed, (first, last) in enumerate([(10, 15), (20.5, 20.5), (30, 28)]):
        finish(tmp_path, FIRST, seed, AP=first, AR=1.0)
        finish(tmp_path, LAST, seed, AP=last, AR=1.5)
    finish(tmp_path, FIRST, 3, AP=90, AR=2.0)
    table = table_of(
        ("first", FIRST), ("last", LAST), metrics={"AP": "AP50", "AR": "recall"}, pairs=[("first", "last")]
    )
    *_, line, _, _ = markdown(table, output=tmp_path, seeds=[0, 1, 2, 3])
    cells = "+1.0 ± 3.6 (95 %: -8.0 to +10.0) | +0.5 ± 0.0 (95 %: +0.5 to +0.5) | +5.0, +0.0, -2.0, –"
    assert line == f"| last − first | {cells} |"
    assert markdown(table, output=tmp_path, seeds=[2])[-3] == "| last − first | -2.0 | +0.5 | -2.0 |"
    assert markdown(table, output=tmp_path, seeds=[3])[-3] == "| last − first | not run | not run | – |"
    assert not [line for line in markdown(table, output=tmp_path, seeds=[2], scale="full") if "−" in line]


def test_a_report_replaces_tables_by_title_and_no_word_around_them(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("# By hand\n")
    for figure in ("1", "2"):
        report(path, {"One": ["| a |", f"| {figure} |"]})
        report(path, {"Two": ["| b |"]})
    path.write_text(path.read_text() + "And more.\n")
    assert report(path, {"One": ["| a |", "| 3 |"]}) == "### One\n\n| a |\n| 3 |\n"
    assert path.read_text() == (
        "# By hand\n\n<!-- table: One -->\n### One\n\n| a |\n| 3 |\n\n<!-- end: One -->\n\n"
        "<!-- table: Two -->\n### Two\n\n| b |\n\n<!-- end: Two -->\nAnd more.\n"
    )


def test_the_command_runs_what_is_chosen_and_reports_what_has_been_run(tmp_path, ran, monkeypatch):
    def call(*words):
        main(["reproduce", "--scale", "mini", "--output", str(tmp_path), *words])

    drawn = []
    tables = (
        table_of(("start", START)),
        table_of(("tuned", FIRST), seeds=(4,), drawings={"x.png": lambda *found: drawn.append(found)})._replace(
            name="own", title="my own rows"
        ),
    )
    monkeypatch.setattr("reproduce.TABLES", tables)
    output = tmp_path / "mini"
    finish(output, FIRST, 4, AP=12.34)
    call("--table", "own")
    assert [name for name, *_ in ran] == ["start.yaml", "tuned.yaml"]
    written = (output / "tables.md").read_text()
    assert "### My own rows\n" in written and "| tuned | 12.3 | 12.3 |" in written and "Mini Table 2a" not in written
    assert drawn == [(output, (4,), output / "x.png")]
    report_alone = ("--seeds", "4", "--report", str(tmp_path / "all.md"))
    call(*report_alone)
    with pytest.raises(SystemExit):  # no run of it is finished
        call(*report_alone, "--table", "2a")
    assert len(ran) == len(drawn) == 2 and (tmp_path / "all.md").read_text() == written


def test_a_table_without_its_end_and_records_without_figures_are_told(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("<!-- table: One -->\n| a |\n\nBy hand.\n")
    with pytest.raises(UserError, match="without <!-- end: One --> below it"):
        report(path, {"One": ["| b |"]})
    assert "By hand" in path.read_text()
    table = table_of(("start", START))
    finish(tmp_path, START, 0, AP=None)
    assert markdown(table, output=tmp_path, seeds=[0])[2] == "| start | – | – |"  # trained, without this figure
    start = '"seconds": 1, "settings": {"config": "start.yaml, seed 0", "inputs": {}}'
    for content in ("", "[]", f'{{{start}, "results": 3}}', f'{{{start}, "results": {{"AP": "high"}}}}'):
        (START.folder(tmp_path, 0) / "results.json").write_text(content)
        with pytest.raises(UserError, match=f"{START.folder(tmp_path, 0)}.*: remove .* to train this row anew"):
            markdown(table, output=tmp_path, seeds=[0])
