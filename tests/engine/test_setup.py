"""From the command line to a checked config."""

import logging
from pathlib import Path

import pytest
import torch
import yaml

from clim.engine import load_config, setup
from clim.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
CLIM = str(CONFIGS / "mini/detic_clim.yaml")


ARCHITECTURES = ("OpenVocabRCNN", "ImageTextModel", "FVLM", "GridTextModel")


def test_every_config_of_the_repository_loads():
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert len(files) > 10
    for file in files:
        cfg = load_config(str(file), [])
        assert cfg.is_frozen() and cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES, file
        if "Base" not in file.stem:  # a file that others build on says nothing about its output
            assert cfg.OUTPUT_DIR.startswith("output/"), file


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["MODEL.FOO", "1"], "Non-existent key: MODEL.FOO"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR"], "odd length"),
        (["DATASETS.TEST", "mini_ov_val"], "DATASETS.TEST"),
        (["SOLVER.IMS_PER_BATCH", "8"], "DATALOADER.DETECTION_PER_GPU"),
        (["MODEL.DEVICE", "gpu"], 'MODEL.DEVICE is "gpu"'),
        (["INPUT.MOSAIC.GROUPS", "0"], "INPUT.MOSAIC.GROUPS was renamed to MODEL.METHOD.DETIC.GROUPS"),
    ],
)
def test_wrong_overrides(overrides, told):
    with pytest.raises(UserError) as caught:
        load_config(CLIM, overrides)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["MODEL: [1,\n", "just text\n", "MODEL:\n  FOO: 1\n", "INPUT: {MOSAIC: {GROUPS: 0}}\n", "_BASE_: none.yaml\n"],
)
def test_wrong_files(tmp_path, content):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(UserError, match="x.yaml") as caught:
        load_config(str(tmp_path / "x.yaml"), [])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="missing.yaml"):
        load_config(str(tmp_path / "missing.yaml"), [])


def test_without_cuda_the_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "cpu"):
        assert load_config(CLIM, ["MODEL.DEVICE", device]).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_config(CLIM, ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"


def test_setup_logs_and_keeps_the_config(tiny_mini, tiny_overrides, monkeypatch, capsys, arguments):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = Path(tiny_overrides[-1])
    cfg = setup(arguments("--config-file", CLIM, *tiny_overrides, "MODEL.DEVICE", "cuda"))
    kept = load_config(str(output / "config.yaml"), [])
    assert yaml.safe_load(kept.dump()) == yaml.safe_load(cfg.dump())  # as text, shared lists may differ by an anchor
    log = (output / "log.txt").read_text()
    assert log.count("Running on the CPU: no CUDA device was found.") == 1
    logging.getLogger("clim.anything").info("heard")
    assert "heard" in (output / "log.txt").read_text()
    assert "heard" in capsys.readouterr().out


def test_setup_checks_what_is_trained_on(tiny_mini, tiny_overrides, monkeypatch, arguments):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    wrong = ["--config-file", CLIM, *tiny_overrides, "DATASETS.TRAIN", "('x',)", "MODEL.METHOD.NAME", ""]
    with pytest.raises(UserError, match="MODEL.METHOD.NAME"):
        setup(arguments(*wrong))
    setup(arguments("--eval-only", *wrong))
