"""The paper's rows at full size: their configs, what they start from, and what the dry run says without data."""

import pytest

from clim_commands.main import main
from experiments.full import Preparation, Training, plan
from experiments.needs import gpu_hours, needed_files
from experiments.rows import CONFIGS, Row, config_of, with_origins
from reproduce import TABLES, full

# Configs of no row: what others share, those of other projects, and the parents of configs/lvis/CLIP_CLIM_*.
OTHERS = {"BARON_C4_joint", "CLIP_CLIM_RN50x64_CC3M", "CLIP_CLIM_ViTB16_CC3M"}
ROWS = list(dict.fromkeys(row for table in TABLES for row in table.rows("full")))
ALL_ROWS = list(dict.fromkeys(row for row, _ in with_origins((row, ()) for row in ROWS)))


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_row_starts_from_what_its_config_starts_from(tmp_path):
    """The file that the config names, output/NAME/FILE, is that of the row with this OUTPUT_DIR."""
    assert len({row.folder(tmp_path, 0) for row in ALL_ROWS}) == len(ALL_ROWS)
    for row in ALL_ROWS:
        cfg, named = config_of(row), {}
        for key, value in (
            ("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS),
            ("MODEL.IMAGE_ENCODER.PRETRAINED", cfg.MODEL.IMAGE_ENCODER.PRETRAINED),
        ):
            if value.startswith("output/"):
                named[key] = value
        assert named == {key: f"{config_of(start).OUTPUT_DIR}/{file}" for key, start, file in row.starts_from}, row


def test_every_config_belongs_to_a_row_or_to_none_for_a_reason():
    files = [path for folder in (".", "lvis", "ablations") for path in (CONFIGS / folder).glob("*.yaml")]
    rows = {(CONFIGS / row.config).resolve() for row in ALL_ROWS}
    left = {path for path in map(lambda path: path.resolve(), files) if path not in rows}
    unknown = {path.stem for path in left if not (path.stem.startswith("Base_") or "_official" in path.stem)}
    assert unknown == OTHERS
    assert {path.parent.name for path in left if path.stem in OTHERS} == {"configs"}


def test_published_figures_belong_to_a_column():
    for table in TABLES:
        shown = {*table.headings("mini").values(), *table.headings("full").values()}
        for entry in table.entries:
            assert entry.published.keys() <= shown, entry.name
            first = next(iter(table.headings("full").values()))
            assert not entry.published or first in entry.published, entry.name


def test_every_file_of_a_row_has_a_maker_or_a_remedy(tmp_path):
    made = {step.makes for step in full.STEPS}
    assert len(made) == len(full.STEPS)
    needed = {file for row in ALL_ROWS for file in needed_files(config_of(row))}
    read = {file for step in full.STEPS for file in step.reads}
    assert made <= needed | read  # no step is without a use
    text = {file for file in needed if file.startswith("metadata/") and "cat_info" not in file}
    assert text <= made
    for row in ALL_ROWS:
        assert all(needed_files(config_of(row)).values())
    tasks = plan(ROWS, [0, 1], output=tmp_path, steps=full.STEPS)
    place = {task: number for number, task in enumerate(tasks)}
    assert all(place[need] < place[task] for task, needs in tasks.items() for need in needs)
    assert {task.row for task in tasks if isinstance(task, Training)} == set(ALL_ROWS)
    (labels,) = (task for task in tasks if isinstance(task, Preparation) and "pseudo" in task.name)
    assert Training(full.BOXSUP, 0, tmp_path) in tasks[labels]
    assert labels in tasks[Training(full.REGION_CLIP, 1, tmp_path)]  # one file for both seeds


@pytest.mark.parametrize(
    "row, hours",
    [  # published: 12 h, and 17 h, on 8 V100; 90k iterations of 16 and 64 images
        (full.BOXSUP, 96), (full.LVIS_BOXSUP, 136), (Row("OVRCNN_pretrain.yaml"), 80), (full.OVRCNN, 144),
        # half of 90k iterations: 48 h of boxes, and per GPU 4 pairs, as many as 8 every second iteration
        (full.DETIC, 48 + (128 - 48) / 2),
        # 2 pairs and 2 canvases of 800 px in place of 2 of 4 pairs
        (full.DETIC_CLIM, 48 + (128 - 48) / 4 + 48),
    ],
)  # fmt: skip
def test_gpu_hours_are_images_divided_by_published_rates(row, hours):
    assert gpu_hours(config_of(row))[0] == pytest.approx(hours)


def test_epochs_count_the_images_of_the_data_set():
    """100 epochs of 924 iterations, 4 GPUs: 128 crops and 12 canvases each."""
    cfg = config_of(full.CLIP_CLIM)
    crops, canvases = 92_400 * 128, 92_400 * 12
    flops = {side: 2 * 86e6 * n + 12 * 4 * n**2 * 768 for side, n in ((224, 14**2), (1024, 64**2))}
    expected = (crops * 2 * flops[224] + canvases * 2 * flops[1024]) / 40e12 / 3600
    assert gpu_hours(cfg)[0] == pytest.approx(expected)
    shorter = config_of(full.CLIP_CLIM, "SOLVER.EPOCHS", 50)
    assert gpu_hours(shorter)[0] == pytest.approx(expected / 2)


def test_the_dry_run_prints_commands_in_order_and_starts_nothing(no_data, capsys):
    main(["reproduce", "--table", "2b", "--dry-run", "--num-gpus", "8", "--output", "out"])
    lines = capsys.readouterr().out.splitlines()
    commands = [line.strip() for line in lines if line.startswith("   python ")]
    options = "--resume --num-gpus 8 --dist-url auto OUTPUT_DIR"
    train = f"python {CONFIGS.parent}/train_net.py --config-file {CONFIGS}/{{}}.yaml {options}"
    folder = "out/full/seed0/"
    start = f"{folder}BoxSup_C4/model_final.pth"
    tool = f"python {CONFIGS.parent}/tools/build_text_embeddings.py classes --dataset coco --output"
    assert commands == [
        f"{tool} datasets/metadata/coco_clip_hand_craft.npy",
        f"{train.format('BoxSup_C4')} {folder}BoxSup_C4 SEED 0",
        *(
            f"{train.format(config)} {folder}{name} SEED 0 MODEL.WEIGHTS {start}"
            for config, name in (
                ("ablations/grid2", "grid2"), ("ablations/grid3", "grid3"), ("ablations/grid4", "grid4"),
                ("Detic_CLIM_C4_caption", "Detic_CLIM_C4_caption"),
            )
        ),
    ]  # fmt: skip
    assert lines[0] == "Table 2b: grids, captions alone"
    remedy = f"make it with: python datasets/prepare_ovcoco.py --source COCO --output {no_data}/datasets"
    assert f"   missing coco/train2017: {remedy}" in lines
    assert "About 560 GPU hours are left of 560." in lines  # 96 + 4 x 116
    assert not list(no_data.iterdir())


def test_the_dry_run_of_every_table(no_data, capsys):
    main(["reproduce", "--dry-run"])
    text = capsys.readouterr().out
    assert all(table.heading("full") in text for table in TABLES if table.rows("full"))
    assert not list(no_data.iterdir())
