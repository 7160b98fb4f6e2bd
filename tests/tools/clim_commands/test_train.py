"""``clim train``: what the recipe sets for a checkpoint and data, and the table of what has changed."""

import argparse
import json
from pathlib import Path

import pytest
import yaml

import train_net
from clim.checkpoints import read_description
from clim.errors import UserError
from clim_commands.train import (
    add_train_options,
    compared,
    default_output,
    method_of,
    pairs,
    print_changes,
    recipe,
    sources,
    train,
)
from mini.own import build_own


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


def test_what_has_changed_is_shown_by_group(capsys):
    def report(**ap50):
        splits = {"car": "base", "bus": "base", "dog": "novel", "kite": "novel"}
        rows = [{"class": c, "split": splits[c], "AP50": v, "AP": v and v / 2} for c, v in ap50.items()]
        return {"dataset": "mine_val", "per_class": rows}

    before = report(car=20.0, bus=40.0, dog=60.0, kite=None)
    print_changes(before, report(car=50.0, bus=30.0, dog=10.0, kite=None))
    out = capsys.readouterr().out
    assert "30.0 → 40.0 (+10.0)" in out and "15.0 → 20.0 (+5.0)" in out and "60.0 → 10.0 (-50.0)" in out
    assert "2 of 2" in out and "1 of 2" in out and "Lost most (AP50): dog 60 → 10, bus 40 → 30." in out
    assert compared([], []) == "–"


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_train_options(parser)
    return parser.parse_args(list(map(str, words)))


def test_without_data_it_is_train_net(monkeypatch, tmp_path):
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_net, "launch", lambda args, process: started.append((args.config_file, args.opts)))
    for name in ("x.yaml", "y.pth", "d.yaml"):
        (tmp_path / name).touch()
    train(arguments("--config-file", "x.yaml", "SEED", "1"))
    train(arguments("--weights", "y.pth", "SEED", "1"))
    train(arguments("--data", "d.yaml", "--weights", "y.pth", "--config-file", "x.yaml", "--eval-only"))
    own = ["DATASETS.DATA", "d.yaml", "MODEL.WEIGHTS", "y.pth"]
    assert started == [("x.yaml", ["SEED", "1"]), ("y.pth", [*own[2:], "SEED", "1"]), ("x.yaml", own)]
    with pytest.raises(UserError, match="--weights z.pth"):
        train(arguments("--data", "d.yaml", "--weights", "z.pth"))


TINY_C4 = {
    "MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu", "MODEL.VOCABULARY.PROMPT": "a", "MODEL.TEXT.PRETRAINED": "",
    "MODEL.TEXT.DIM": 12, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40, "MODEL.RPN.POST_NMS_TOPK_TEST": 15,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8, "INPUT.MIN_SIZE_TRAIN": "(96,)", "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.CAPTION.SHORT_SIDE": 64, "INPUT.MOSAIC.SIZE": 128, "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.LOG_PERIOD": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "config, rate", [("mini/detic_clim.yaml", 0.001), pytest.param("Detic_CLIM_C4.yaml", 0.02, marks=pytest.mark.slow)]
)
def test_a_checkpoint_and_a_data_yaml_are_enough(
    config, rate, tiny_mini, tiny_overrides, tiny_json, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    build_own(tiny_mini, seed=7, num_train=6, num_pairs=20, workers=1)
    data, weights, output = tiny_mini / "mini_own/data.yaml", tmp_path / "start/model_final.pth", tmp_path / "own"
    small = tiny_overrides if "mini" in config else pairs(TINY_C4 | {"MODEL.TEXT.NAME": tiny_json("vit")})
    once = (*small, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()", "OUTPUT_DIR", weights.parent)
    train(arguments("--config-file", f"configs/{config}", "--data", data, *once))

    train(arguments("--data", data, "--weights", weights, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", output))
    out = capsys.readouterr().out
    assert "6 images with boxes and 20 image-text pairs" in out
    assert f"\n2 iterations with learning rate {rate}, in" in out  # that of the checkpoint's training
    assert "of 20" in out and "of 45" in out and (output / "before/evaluation.json").is_file()
    described, names = read_description(output / "model_final.pth"), yaml.safe_load(data.read_text())
    assert described["class_names"] == names["classes"] + names["novel"]
    assert described["base_classes"] == names["classes"]
    assert {"loss_cls", "loss_caption", "loss_tag", "loss_caption_mosaic", "loss_tag_mosaic"} < losses_in(output)
    if "mini" not in config:
        return

    boxes = {"path": str(data.parent), "classes": [*names["classes"], "ocean"], "train": names["train"]}
    (mine := tmp_path / "mine.yaml").write_text(yaml.safe_dump(boxes))
    train(arguments("--data", mine, "--weights", weights, "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path / "alone"))
    out = capsys.readouterr().out
    assert "and no captions: words without boxes may suffer" in out and "so their objects count as background" in out
    assert "loss_cls" in losses_in(tmp_path / "alone") and "loss_caption" not in losses_in(tmp_path / "alone")


def losses_in(folder):
    return set(json.loads((folder / "metrics.json").read_text().splitlines()[0]))
