"""Weights that are not there: the sentence says how to get them."""

import pytest
from torch import nn

from clim.engine import SafeCheckpointer, missing_start
from clim.errors import UserError


def message_of(path, save_dir=""):
    with pytest.raises(UserError) as caught:
        SafeCheckpointer(nn.Linear(3, 2), str(save_dir)).load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file():
    assert message_of("nowhere/weights.pth") == "MODEL.WEIGHTS: nowhere/weights.pth does not exist."


@pytest.mark.parametrize(
    ("weights", "config", "published"),
    [
        ("output/BoxSup_C4/model_final.pth", "configs/BoxSup_C4.yaml", True),
        ("output/BoxSup_C4_official/model_final.pth", "configs/BoxSup_C4_official.yaml", True),
        ("output/mini/base/model_final.pth", "configs/mini/base_stage.yaml", False),
    ],
)
def test_what_another_config_trains(weights, config, published, tmp_path, monkeypatch):
    """The sentence names the config that trains what this one starts from."""
    monkeypatch.chdir(tmp_path)  # away from what this checkout may have trained
    message = message_of(weights)
    assert f"python train_net.py --config-file {config} first" in message
    assert ("BoxSup_OVCOCO_CLIP_R50_1x.pth" in message) == published


def test_an_address(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("iopath.common.file_io.download", offline)
    message = message_of("detectron2://ImageNetPretrained/nowhere/R-50.pkl")
    assert "could not be fetched (no network)" in message
    assert "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/nowhere/R-50.pkl" in message
    assert '""' in message


def test_what_the_pointer_names(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(UserError, match="last_checkpoint beside it names it"):
        SafeCheckpointer(nn.Linear(3, 2), str(tmp_path)).resume_or_load("", resume=True)


def test_configs_are_read_as_yaml(tmp_path, monkeypatch):
    """Whatever the quotes and comments, and only a file's own OUTPUT_DIR; what is no config is passed over."""
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    for name, content in {
        "a.yaml": '# OUTPUT_DIR: "output/mine"\n_BASE_: "deep/plain.yaml"',
        "b.yaml": "OUTPUT_DIR: [broken",
        "c.yaml": "just a sentence",
        "d.yaml": "",
        "deep/plain.yaml": "OUTPUT_DIR: output/mine/  # without quotes\nSOLVER:\n  MAX_ITER: 1",
    }.items():
        (tmp_path / "configs" / name).write_text(content)
    monkeypatch.setattr(missing_start, "CONFIGS", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    told = message_of("output/mine/model_final.pth")
    assert told == (
        "MODEL.WEIGHTS: output/mine/model_final.pth does not exist: this config starts from what another one trains; "
        "run python train_net.py --config-file configs/deep/plain.yaml first."
    )
    for path in ("output/mine/model_0000001.pth", "output/other/model_final.pth"):
        assert message_of(path) == f"MODEL.WEIGHTS: {path} does not exist."
