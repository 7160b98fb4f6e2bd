"""The rows of the tables: what they train on, what they start from, and that no two of them share a folder."""

import os

from detectron2.data import MetadataCatalog

from clim.files import data_root
from clim_commands.reproduce import NAMES
from experiments.rows import config_of, datasets_of, with_origins
from reproduce import TABLES, clip, ov_coco, ov_lvis, own_boxes


def all_rows(tables):
    """{row: its config after the overrides} of the rows of ``tables``, and of what they start from."""
    rows = [(row, ()) for table in tables for row in table.rows("mini")]
    return {row: config_of(row) for row, _ in with_origins(rows)}


def test_the_command_names_all_tables():
    assert sorted(NAMES) == sorted({table.name for table in TABLES})


def test_every_row_has_a_config_and_a_folder_of_its_own(tmp_path):
    configs = all_rows(TABLES)
    folders = {row.folder(tmp_path, 0).name: row for row in configs}
    assert len(folders) == len(configs) and max(map(len, folders)) < 255  # a file system's limit
    for row, cfg in configs.items():  # a config that starts from another run names its file in output/mini
        starts = {key for key, *_ in row.starts_from}
        assert ("MODEL.WEIGHTS" in starts) == cfg.MODEL.WEIGHTS.startswith("output/")
        assert ("MODEL.IMAGE_ENCODER.PRETRAINED" in starts) == cfg.MODEL.IMAGE_ENCODER.PRETRAINED.startswith("output/")


def test_all_rows_of_mini_ov_lvis_learn_from_it_alone():
    for row, cfg in all_rows(ov_lvis.TABLES).items():
        assert all(name.startswith("mini_lvis_") for name in cfg.DATASETS.CAPTIONS) or "fvlm" in row.config, row
        if cfg.MODEL.META_ARCHITECTURE == "ImageTextModel":
            assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((), ()), row
        else:
            assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("mini_lvis_train",), ("mini_lvis_val",)), row
            assert cfg.MODEL.MASK_ON, row


def test_fvlm_rows_differ_in_their_encoders_alone():
    whole, clim, control = (entry.mini for entry in ov_lvis.FVLM)
    encoders = [row.starts_from[0][1] for row in (whole, clim, control)]
    assert {(row.config, row.overrides) for row in (whole, clim, control)} == {("mini/lvis_fvlm.yaml", ())}
    assert [encoder.config for encoder in encoders] == [f"mini/clip_{name}.yaml" for name in ("whole", "clim", "clim")]
    assert encoders[2].overrides == (*encoders[1].overrides, *ov_lvis.PERMUTED_TEXTS)
    assert {encoder.starts_from for encoder in encoders} == {(("MODEL.WEIGHTS", ov_lvis.ENCODER, "model_final.pth"),)}


def test_fine_tuning_starts_from_one_model_and_differs_in_its_sources_alone():
    configs = {row: cfg for row, cfg in all_rows(own_boxes.TABLES).items() if "finetune_" in row.config}
    sizes = [(c.DATALOADER.CAPTIONS_PER_GPU, c.DATALOADER.MOSAICS_PER_GPU) for c in configs.values()]
    assert sizes == [(0, 0), (0, 0), (0, 0), (4, 0), (2, 2), (2, 2)]
    for row, cfg in configs.items():
        assert row.starts_from == (("MODEL.WEIGHTS", own_boxes.BEFORE, "model_final.pth"),)
        assert (cfg.DATASETS.TRAIN, cfg.DATASETS.CAPTIONS) == (("mini_own_train",), ("mini_own_captions",))
        boxed = "" if row.overrides == own_boxes.ALL_BOXED else "mini_own_train"
        assert cfg.MODEL.OPEN_VOCAB.BASE_CLASSES == boxed and cfg.DATASETS.TEST == ("mini_ov_val",)
        assert cfg.SOLVER.BASE_LR == (0.0001 if row.overrides[:1] == ("SOLVER.BASE_LR",) else 0.001)


def test_groups_are_the_own_the_other_base_and_the_novel_classes(tmp_path):
    (tmp_path / "mini_own").mkdir()
    (tmp_path / "mini_own/data.yaml").write_text("classes: [a, b]")
    rows = [("a", "base", 10, 5), ("b", "base", 20, None), ("c", "base", 40, 1), ("d", "novel", 0, 3)]
    rows = [dict(zip(("class", "split", "AP50", "AP"), row, strict=True)) for row in rows]
    assert own_boxes.group_figures({"per_class": rows}, tmp_path) == {
        "AP50_own": 15, "AP_own": 5, "AP50_other": 40, "AP_other": 1, "AP50_novel": 0, "AP_novel": 3,
    }  # fmt: skip


def test_rows_prepare_the_files_that_they_read(tmp_path, monkeypatch):
    """Labels with and without a cut, and neighbours by text and by image."""
    calls, root = [], datasets_of(tmp_path, 3)

    def run_script(name, arguments, *, output, written_last=None, **_):
        calls.append(options(arguments) | {"output": output, "last": written_last or output})

    for module in (clip, ov_coco):
        monkeypatch.setattr(module, "run_script", run_script)
    partner_rows = [entry.mini for entry in ov_coco.PARTNERS[1:]]
    rows = {row: cfg for row, cfg in all_rows((*clip.TABLES, *ov_coco.TABLES)).items() if row.prepare}
    assert set(rows) == {clip.REGION_CLIP, clip.CUT_REGION_CLIP, *partner_rows}
    for row, cfg in rows.items():
        if row in partner_rows:
            made = root / cfg.INPUT.MOSAIC.PARTNERS
            note = made.with_suffix(".json")
        else:
            (name,) = cfg.DATASETS.REGIONS
            made = note = root / os.path.relpath(MetadataCatalog.get(name).json_file, data_root())
        row.prepare(tmp_path, 3)
        assert (calls[-1]["output"], calls[-1]["last"]) == (made, note)
    cuts = {call["output"].name: call["--min-objectness"] for call in calls if "--min-objectness" in call}
    assert cuts == {"pseudo_regions.json": 0, "pseudo_regions_cut.json": clip.MIN_OBJECTNESS}
    assert {call["--by"]: call["--name"] for call in calls if "--by" in call} == {"text": "minilm", "image": "lite0"}


def options(arguments):
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


def test_partners_differ_in_their_list_alone_and_a_control_follows_the_row_that_makes_it():
    rows = [entry.mini for entry in (*ov_coco.PARTNERS, *ov_coco.PARTNER_CONTROLS)]
    configs = all_rows(ov_coco.TABLES)
    lists = ["random", "mini/metadata/neighbours_text.npy", "mini/metadata/neighbours_image.npy"]
    assert [configs[row].INPUT.MOSAIC.PARTNERS for row in rows] == lists * 2
    for row, control in zip(rows[:3], rows[3:], strict=True):
        assert control.needs == (row,) and control.overrides == (*row.overrides, *ov_coco.PERMUTED_TEXTS)
        assert row.starts_from == control.starts_from == (("MODEL.WEIGHTS", ov_coco.BASE, "model_final.pth"),)
        assert configs[row].MODEL.METHOD.DETIC.TAG_WEIGHT == 0
