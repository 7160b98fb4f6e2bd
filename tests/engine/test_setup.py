"""From the command line to a checked config; a mistake ends in one sentence and exit code 2."""

import argparse
import logging
import socket
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing import ProcessRaisedException

from clim.engine import failures, load_config, processes, run_cleanly, setup, together
from clim.engine.checks import (
    check_composition,
    check_datasets,
    check_device,
    check_ranges,
    check_sources,
    check_text_width,
)
from clim.engine.failures import sentence
from clim.engine.processes import check_processes
from clim.engine.schedule import count_epochs, scale_to_world
from clim.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
CLIM = str(CONFIGS / "mini/detic_clim.yaml")


def arguments(*argv):
    return default_argument_parser().parse_args(list(argv))


# ---- One sentence ----------------------------------------------------------------------------------


def test_user_errors_become_one_line_and_exit_code_2(capsys):
    def mistake():
        raise UserError("the folder is missing: make it.")

    with pytest.raises(SystemExit) as caught:
        run_cleanly(mistake)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: the folder is missing: make it.\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cleanly(lambda: 1 / 0)
    assert run_cleanly(lambda x: x + 1, 1) == 2


def raised_in(function):
    try:
        function()
    except Exception:
        return traceback.format_exc()


def mistake_with_a_cause():
    try:
        {}["key"]
    except KeyError as error:
        raise UserError("no such key: give another.") from error


def test_the_sentence_of_a_spawned_process(capsys):
    text = "\n\n-- Process 1 terminated with the following error:\n" + raised_in(mistake_with_a_cause)

    def launched():
        raise ProcessRaisedException(text, 1, 4711)

    with pytest.raises(SystemExit) as caught:
        run_cleanly(launched)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such key: give another.\n"


def test_the_sentence_of_a_loader_worker():
    wrapped = "Caught UserError in DataLoader worker process 0.\nOriginal " + raised_in(mistake_with_a_cause)
    assert sentence(UserError(wrapped)) == "no such key: give another."
    nested = "-- Process 0 terminated:\nTraceback (most recent call last):\nclim.errors.UserError: " + wrapped
    assert sentence(ProcessRaisedException(nested, 0, 1)) == "no such key: give another."


def test_an_error_after_a_user_error_is_no_sentence():
    def stumble():
        try:
            mistake_with_a_cause()
        except UserError:
            raise ValueError("a bug") from None

    def stumble_aloud():
        try:
            mistake_with_a_cause()
        except UserError:
            1 / 0  # noqa: B018

    for function in (stumble, stumble_aloud):
        assert sentence(ProcessRaisedException(raised_in(function), 0, 1)) is None
    assert sentence(ValueError("x")) is None


def test_together_in_one_process():
    with together():
        pass
    with pytest.raises(UserError, match="^mine$") as caught, together():
        raise UserError("mine")
    assert isinstance(caught.value.__cause__, UserError)
    with pytest.raises(KeyError), together():
        raise KeyError("a bug")


def test_together_raises_another_process_error_here(monkeypatch):
    monkeypatch.setattr(failures.comm, "all_gather", lambda told: [told, "of rank 1", "of rank 2"])
    with pytest.raises(UserError, match="^of rank 1$"), together():
        pass
    with pytest.raises(UserError, match="^of rank 0$"), together():
        raise UserError("of rank 0")


# ---- Config files and overrides --------------------------------------------------------------------


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
    ],
)
def test_wrong_overrides(overrides, told):
    with pytest.raises(UserError) as caught:
        load_config(CLIM, overrides)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["MODEL: [1,\n", "just text\n", "MODEL:\n  FOO: 1\n", "_BASE_: none.yaml\n"]
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


def test_processes_on_the_cpu_beside_gpus(monkeypatch, tiny_cfg):
    cfg = tiny_cfg()
    monkeypatch.setattr("clim.engine.checks.comm.get_world_size", lambda: 2)
    check_device(cfg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        check_device(cfg)


def test_pairs_and_method_belong_together(tiny_cfg):
    check_sources(tiny_cfg())
    check_sources(tiny_cfg(config="mini/base_stage.yaml"))
    with pytest.raises(UserError, match="set MODEL.METHOD.NAME"):
        check_sources(tiny_cfg("MODEL.METHOD.NAME", ""))
    with pytest.raises(UserError, match="Detic needs image-text pairs"):
        check_sources(tiny_cfg("DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0))


def test_data_sets_that_are_not_registered(tiny_cfg):
    for key in ("TRAIN", "CAPTIONS", "TEST"):
        cfg = tiny_cfg(f"DATASETS.{key}", "('mini_ov_vall',)")
        with pytest.raises(UserError, match=rf"DATASETS.{key} names mini_ov_vall.* near it: mini_ov_val,"):
            check_datasets(cfg, training=True)
    check_datasets(tiny_cfg("DATASETS.TRAIN", "('nothing',)"), training=False)  # not read without training


def test_data_sets_of_other_classes(tiny_cfg):
    check_datasets(tiny_cfg(), training=True)
    with pytest.raises(UserError, match="coco_generalized_zeroshot_val has 80 classes, but the detector 65"):
        check_datasets(tiny_cfg("DATASETS.TEST", "('coco_generalized_zeroshot_val',)"), training=False)
    with pytest.raises(UserError, match="mini_ov_train has 65 classes, but the detector 2"):
        check_datasets(tiny_cfg("MODEL.VOCABULARY.NAMES", "['cat', 'dog']"), training=True)
    DatasetCatalog.register("own_boxes", list)
    try:
        check_datasets(tiny_cfg("DATASETS.TRAIN", "('own_boxes',)"), training=True)  # tells no classes
    finally:
        DatasetCatalog.remove("own_boxes")
        MetadataCatalog.remove("own_boxes")


def test_text_width(tiny_cfg, hash_tower):
    check_text_width(tiny_cfg(), hash_tower(384))
    with pytest.raises(UserError, match="gives embeddings of 512 dimensions, but MODEL.TEXT.DIM is 384"):
        check_text_width(tiny_cfg(), hash_tower(512))


def test_setup_logs_and_keeps_the_config(tiny_mini, tiny_overrides, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = Path(tiny_overrides[-1])
    cfg = setup(arguments("--config-file", CLIM, *tiny_overrides, "MODEL.DEVICE", "cuda"))
    kept = load_config(str(output / "config.yaml"), [])
    assert yaml.safe_load(kept.dump()) == yaml.safe_load(
        cfg.dump()
    )  # as text, shared lists may differ by an anchor
    log = (output / "log.txt").read_text()
    assert log.count("Running on the CPU: no CUDA device was found.") == 1
    logging.getLogger("clim.anything").info("heard")
    assert "heard" in (output / "log.txt").read_text()
    assert "heard" in capsys.readouterr().out


def test_setup_checks_what_is_trained_on(tiny_mini, tiny_overrides, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    wrong = ["--config-file", CLIM, *tiny_overrides, "DATASETS.TRAIN", "('x',)", "MODEL.METHOD.NAME", ""]
    with pytest.raises(UserError, match="MODEL.METHOD.NAME"):
        setup(arguments(*wrong))
    setup(arguments("--eval-only", *wrong))


# ---- Numbers of processes --------------------------------------------------------------------------


def test_scaling_to_one_process():
    """Full-size configs are for 8 GPUs: one process takes an eighth of the rate and eight times the steps."""
    cfg = load_config(str(CONFIGS / "Detic_CLIM_C4.yaml"), ["TEST.EVAL_PERIOD", 5000])
    one = scale_to_world(cfg, 1)
    assert one.SOLVER.BASE_LR == 0.02 / 8
    assert one.SOLVER.MAX_ITER == 8 * 45000 and one.SOLVER.STEPS == (8 * 30000, 8 * 40000)
    assert one.SOLVER.WARMUP_ITERS == 8000 and one.SOLVER.CHECKPOINT_PERIOD == 40000
    assert one.TEST.EVAL_PERIOD == 40000
    assert cfg.SOLVER.BASE_LR == 0.02 and cfg.SOLVER.MAX_ITER == 45000  # the given config stays as it was
    assert scale_to_world(cfg, 8) is cfg
    assert scale_to_world(one, 1) is one
    two_machines = scale_to_world(cfg, 16)
    assert two_machines.SOLVER.BASE_LR == 0.04 and two_machines.SOLVER.MAX_ITER == 22500


def test_scaling_says_so_and_how_to_switch_it_off(caplog):
    cfg = load_config(str(CONFIGS / "Detic_CLIM_C4.yaml"), [])
    with caplog.at_level(logging.INFO, "clim"):
        scale_to_world(cfg, 1)
    (line,) = caplog.messages
    assert "written for 8 processes and runs on 1" in line and "SOLVER.BASE_LR 0.02 -> 0.0025" in line
    assert "SOLVER.MAX_ITER 45000 -> 360000" in line and "SOLVER.REFERENCE_WORLD_SIZE 0" in line
    caplog.clear()
    off = load_config(str(CONFIGS / "Detic_CLIM_C4.yaml"), ["SOLVER.REFERENCE_WORLD_SIZE", 0])
    with caplog.at_level(logging.INFO, "clim"):
        assert scale_to_world(off, 1) is off
    assert not caplog.messages


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 16), st.integers(1, 256), st.integers(0, 9))
def test_scaling_never_switches_anything_off_or_on(reference, world, period):
    cfg = load_config(
        str(CONFIGS / "mini/base_stage.yaml"),
        [
            "SOLVER.REFERENCE_WORLD_SIZE",
            reference,
            "SOLVER.CHECKPOINT_PERIOD",
            period,
            "TEST.EVAL_PERIOD",
            period,
        ],
    )
    scaled = scale_to_world(cfg, world)
    for value in (scaled.SOLVER.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD):
        assert (value > 0) == (period > 0)
    assert scaled.SOLVER.MAX_ITER >= 1
    assert scaled.SOLVER.BASE_LR == pytest.approx(cfg.SOLVER.BASE_LR * world / reference)


def test_processes_that_cannot_be_started(monkeypatch):
    check_processes(arguments())
    check_processes(arguments("--num-gpus", "2", "--dist-url", "auto"))
    with pytest.raises(UserError, match="ranks go from 0 to 1"):
        check_processes(arguments("--num-machines", "2", "--machine-rank", "2"))
    with pytest.raises(UserError, match="auto is for one machine"):
        check_processes(arguments("--num-machines", "2", "--dist-url", "auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--num-gpus 2, but this machine has 1"):
        check_processes(arguments("--num-gpus", "2"))


@pytest.mark.parametrize("asked, expected", [(None, "3"), ("1", "1")])
def test_processes_share_the_cores_unless_told_otherwise(monkeypatch, asked, expected):
    monkeypatch.setattr(processes.os, "environ", {} if asked is None else {"OMP_NUM_THREADS": asked})
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []
    monkeypatch.setattr(
        processes, "detectron2_launch", lambda *_, **__: seen.append(dict(processes.os.environ))
    )
    processes.launch(print, arguments("--num-gpus", "2"))
    assert seen == [{"OMP_NUM_THREADS": expected}]


def test_a_port_that_is_taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match="is taken .*--dist-url auto"):
            check_processes(arguments("--num-gpus", "2", "--dist-url", url))
        check_processes(arguments("--num-machines", "2", "--machine-rank", "1", "--dist-url", url))
        check_processes(argparse.Namespace(**vars(arguments("--dist-url", url))))  # one process needs no port
    check_processes(arguments("--num-gpus", "2", "--dist-url", url))


def test_epochs_are_counted_in_whole_batches_of_all_processes(tiny_cfg):
    cfg = tiny_cfg("SOLVER.EPOCHS", 3.0, "DATALOADER.CAPTIONS_PER_GPU", 3, "SOLVER.MAX_ITER", 7)  # 16 pairs
    assert count_epochs(cfg, 1).SOLVER.MAX_ITER == 15
    assert count_epochs(cfg, 2).SOLVER.MAX_ITER == 6
    assert count_epochs(cfg, 100).SOLVER.MAX_ITER == 3
    boxes = tiny_cfg(
        "SOLVER.EPOCHS",
        0.5,
        "DATALOADER.CAPTIONS_PER_GPU",
        0,
        "DATALOADER.MOSAICS_PER_GPU",
        0,
        "MODEL.METHOD.NAME",
        "",
    )
    assert count_epochs(boxes, 1).SOLVER.MAX_ITER == 3  # 12 scenes, 2 a step
    assert count_epochs(tiny_cfg("SOLVER.MAX_ITER", 7), 1).SOLVER.MAX_ITER == 7


def test_canvases_on_the_device_leave_no_other_source_unused(tiny_cfg):
    check_composition(tiny_cfg())
    check_composition(
        tiny_cfg(
            "MODEL.META_ARCHITECTURE",
            "ImageTextModel",
            "MODEL.META_ARCHITECTURE",
            "ImageTextModel",
            "INPUT.MOSAIC.COMPOSE",
            "device",
            "DATALOADER.MOSAICS_PER_GPU",
            0,
        )
    )
    with pytest.raises(UserError, match=r"MOSAICS_PER_GPU 2 and REGIONS_PER_GPU 0 to 0"):
        check_composition(
            tiny_cfg("MODEL.META_ARCHITECTURE", "ImageTextModel", "INPUT.MOSAIC.COMPOSE", "device")
        )


@pytest.mark.parametrize("key, value", [
    ("INPUT.FORMAT", "HSV"), ("INPUT.CAPTION.SHORT_SIDE", 0), ("INPUT.CAPTION.FLIP", 2.0),
    ("INPUT.MOSAIC.GRIDS", [2.5]), ("INPUT.MOSAIC.GRIDS", ["2"]), ("INPUT.MOSAIC.GRIDS", []),
    ("INPUT.MOSAIC.COMPOSE", "foo"), ("INPUT.MOSAIC.CROP_SCALE", [0, 1]), ("INPUT.MOSAIC.CROP_SCALE", [1, 0.5]),
    ("INPUT.MOSAIC.GROUPS", -1), ("DATALOADER.NUM_WORKERS", -1), ("DATALOADER.ALTERNATE", (0, 0)),
    ("MODEL.METHOD.DETIC.QUEUE_LENGTH", -1), ("INPUT.MOSAIC.SIZE", 3), ("INPUT.MOSAIC.CROP_RATIO", [2, 1]),
    ("MODEL.OPEN_VOCAB.WORDS", 0), ("MODEL.METHOD.BARON.WORD_DROPOUT", 1.5), ("MODEL.METHOD.BARON.ORDERS", 0),
    ("MODEL.METHOD.BARON.FREQUENCIES", 7), ("MODEL.METHOD.BARON.QUEUE_LENGTH", -1),
    ("MODEL.METHOD.GROUNDING.TEMPERATURE", 0), ("MODEL.METHOD.GROUNDING.CONTRAST_GROUP", -1),
    ("MODEL.METHOD.GROUNDING.LAYERS", -1), ("MODEL.METHOD.GROUNDING.HEADS", 0),
    ("MODEL.METHOD.GROUNDING.MLM_PROBABILITY", 15),
])  # fmt: skip
def test_values_out_of_range_are_told(tiny_cfg, key, value):
    cfg = tiny_cfg().clone()
    cfg.defrost()
    check_ranges(cfg)
    section, name = key.rsplit(".", 1)
    node = cfg
    for part in section.split("."):
        node = node[part]
    node[name] = value
    with pytest.raises(UserError, match=key):
        check_ranges(cfg)


def test_a_method_without_losses_is_told(tiny_cfg):
    weights = ("MODEL.METHOD.DETIC.CAPTION_WEIGHT", 0.0, "MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0)
    with pytest.raises(UserError, match="both 0"):
        check_ranges(tiny_cfg(*weights))


def test_canvases_on_the_device_need_a_model_that_makes_them(tiny_cfg):
    with pytest.raises(UserError, match="INPUT.MOSAIC.COMPOSE device is for ImageTextModel"):
        check_composition(tiny_cfg("INPUT.MOSAIC.COMPOSE", "device", "DATALOADER.MOSAICS_PER_GPU", 0))
