"""``clim train``: what the recipe sets for a checkpoint and data, and the table of what has changed."""

import argparse
import json
from pathlib import Path

import pytest

import train_net
from clim_commands.train import (
    add_train_options,
    compared,
    default_output,
    method_of,
    print_changes,
    read_classes,
    recipe,
    sources,
    train,
)


@pytest.mark.parametrize(
    "images, processes, iterations",
    [(10, 1, 200), (500, 1, 500), (524, 1, 500), (526, 1, 500), (560, 1, 600), (500, 4, 125), (10**6, 1, 20_000)],
)
def test_the_schedule_follows_the_images(load_cfg, images, processes, iterations):
    keys = recipe(load_cfg("mini/detic_clim.yaml"), images=images, processes=processes)
    assert keys["SOLVER.MAX_ITER"] == iterations and keys["SOLVER.WARMUP_ITERS"] == iterations // 10
    assert keys["SOLVER.STEPS"] == f"({iterations * 4 // 5},)"


def test_the_learning_rate_is_the_checkpoints_for_this_number_of_processes(load_cfg):
    rates = [
        recipe(load_cfg(name), images=500, processes=processes)["SOLVER.BASE_LR"]
        for name, processes in (("Detic_CLIM_C4.yaml", 1), ("Detic_CLIM_C4.yaml", 8), ("mini/detic_clim.yaml", 2))
    ]
    assert rates == [0.02 / 8, 0.02, 0.001]  # of 8 processes, of any number


@pytest.mark.parametrize(
    "config, keys",
    [
        ("Detic_CLIM_C4.yaml", {"NAME": "Detic"}),
        ("mini/baron_clim.yaml", {"NAME": "Baron"}),
        ("mini/baron_base_stage.yaml", {"NAME": "Baron"}),
        ("BoxSup_C4.yaml", {"NAME": "Detic", "DETIC.TEMPERATURE": 25.0, "DETIC.BIAS": [-20.0]}),
        ("VLDet_CLIM_C4.yaml", {"NAME": "Detic", "DETIC.TEMPERATURE": 50.0, "DETIC.BIAS": []}),
        ("OVRCNN_CLIM_C4.yaml", None),
        ("FVLM_ViTB16_CLIM_COCO.yaml", None),
    ],
)
def test_a_checkpoint_learns_from_pairs_by_its_method_or_by_detic(load_cfg, config, keys):
    found = method_of(load_cfg(config))
    assert found == (keys and {f"MODEL.METHOD.{key}": value for key, value in keys.items()})


def test_a_step_has_all_three_sources_or_boxes_alone(load_cfg):
    sizes = [f"DATALOADER.{source}_PER_GPU" for source in ("DETECTION", "CAPTIONS", "MOSAICS", "REGIONS")]
    with_pairs = sources({"MODEL.METHOD.NAME": "Detic"}, cache=Path("x/captions"))
    assert [with_pairs[key] for key in sizes] == [2, 2, 2, 0] and with_pairs["MODEL.TEXT.CACHE"] == Path("x/captions")
    alone = sources(None, cache=Path("x/captions"))
    assert [alone[key] for key in sizes] == [2, 0, 0, 0] and alone["MODEL.METHOD.NAME"] == ""


def test_a_fine_tuning_has_a_folder_of_its_own():
    assert default_output("my/set/data.yaml") == Path("output/finetuned/set")
    assert default_output("my/cars.yaml") == Path("output/finetuned/cars")


def test_what_has_changed_is_shown_by_group(tmp_path, capsys):
    def write(folder, **ap50):
        file = tmp_path / folder / "inference/mine_val/ov_coco_results.json"
        file.parent.mkdir(parents=True)
        splits = {"car": "base", "bus": "base", "dog": "novel", "kite": "novel"}
        rows = [{"class": c, "split": splits[c], "AP50": v, "AP": v and v / 2} for c, v in ap50.items()]
        file.write_text(json.dumps({"summary": {}, "per_class": rows}))
        (file.parent / "coco_instances_results.json").write_text("[]")
        return read_classes(tmp_path / folder, "mine_val")

    before = write("before", car=20.0, bus=40.0, dog=60.0, kite=None)
    print_changes("mine_val", before, write("after", car=50.0, bus=30.0, dog=10.0, kite=None))
    out = capsys.readouterr().out
    assert "30.0 → 40.0 (+10.0)" in out and "15.0 → 20.0 (+5.0)" in out and "60.0 → 10.0 (-50.0)" in out
    assert "1 of 2" in out and "Lost most (AP50): dog 60 → 10, bus 40 → 30." in out
    assert compared([], []) == "–"


def test_without_data_it_is_train_net(monkeypatch):
    parser, started = argparse.ArgumentParser(), []
    add_train_options(parser)
    monkeypatch.setattr(train_net, "launch", lambda args: started.append((args.config_file, args.opts)))
    train(parser.parse_args(["--config-file", "x.yaml", "SEED", "1"]))
    train(parser.parse_args(["--weights", "y.pth", "SEED", "1"]))
    train(parser.parse_args(["--data", "d.yaml", "--weights", "y.pth", "--config-file", "x.yaml", "--eval-only"]))
    own = ["DATASETS.DATA", "d.yaml", "MODEL.WEIGHTS", "y.pth"]
    assert started == [("x.yaml", ["SEED", "1"]), ("y.pth", [*own[2:], "SEED", "1"]), ("x.yaml", own)]
