"""The tables of real photos: what their rows start from and how they differ, and the files of a seed."""

import argparse
import json

import numpy as np
import pytest
import torch

from clim.data.categories import COCO_NAMES, PANOPTIC_NAMES
from clim.errors import UserError
from clim_commands.reproduce import add_reproduce_options
from experiments.rows import config_of
from reproduce import photos

CAPTIONS, MOSAICS = "DATALOADER.CAPTIONS_PER_GPU", "DATALOADER.MOSAICS_PER_GPU"


def configs_of(entries):
    return [config_of(entry.mini) for entry in entries]


def test_encoders_start_from_one_and_differ_in_their_canvases_alone(differences):
    start, *rows = photos.CANVASES
    assert {row.mini.starts_from for row in rows} == {(("MODEL.WEIGHTS", start.mini, "model_final.pth"),)}
    whole, small, medium, large, control = configs_of(rows)
    assert whole.INPUT.MOSAIC.COMPOSE == "loader" and whole.DATALOADER.MOSAICS_PER_GPU == 0  # no canvases
    assert differences(medium, whole) == {"INPUT.MOSAIC.COMPOSE": "device"}
    assert differences(small, medium) == {"INPUT.MOSAIC.SIZE": 192}
    assert differences(large, medium) == {"INPUT.MOSAIC.SIZE": 384} and medium.INPUT.MOSAIC.SIZE == 256
    assert differences(control, medium) == {"INPUT.MOSAIC.PERMUTE_TEXTS": True}


def test_detectors_start_from_the_base_stage_and_differ_in_their_pairs_alone(differences):
    base, *rows = photos.DETECTORS
    assert {row.mini.starts_from for row in rows} == {(("MODEL.WEIGHTS", base.mini, "model_final.pth"),)}
    detic, stacked, clim, control = configs_of(rows)
    assert (detic.DATALOADER.CAPTIONS_PER_GPU, detic.DATALOADER.MOSAICS_PER_GPU) == (4, 0)
    assert differences(stacked, detic) == {CAPTIONS: 21}
    assert differences(clim, detic) == {CAPTIONS: 2, MOSAICS: 2}
    assert differences(control, clim) == {"INPUT.MOSAIC.PERMUTE_TEXTS": True}


def test_all_rows_learn_from_flickr8k_and_train_photos_and_are_tested_on_val_photos():
    for entries, train, test in (
        (photos.CANVASES, (), ("coco_val_regions", photos.PANOPTIC)),
        (photos.DETECTORS, ("coco_zeroshot_train_oriorder",), ("coco_generalized_zeroshot_val",)),
    ):
        for config in configs_of(entries):
            sets = [config.DATASETS[key] for key in ("TRAIN", "CAPTIONS", "REGIONS", "TEST")]
            assert sets == [train, ("flickr8k",), (), test]


def test_tables_of_photos_are_trained_only_if_they_are_named():
    parser = argparse.ArgumentParser()
    add_reproduce_options(parser)
    names = {table.name for table in photos.TABLES}
    assert not names & set(parser.parse_args([]).table)
    assert set(parser.parse_args(["--table", *names]).table) == names


def test_a_seed_links_the_prepared_photos_and_all_seeds_share_the_embeddings(tmp_path, monkeypatch):
    data, output = tmp_path / "data", tmp_path / "output"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    given = []
    monkeypatch.setattr(photos, "write_text_embeddings", lambda folder, texts: given.append((folder, texts)))
    roots = [output / f"seed{seed}/datasets" for seed in (0, 1)]
    for name in photos.NEEDED:
        with pytest.raises(UserError, match=f"{name} is missing: make it with\n  python datasets/prepare_flickr8k.py"):
            photos.set_up_photos(roots[0], seed=0)
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg", "captions": ["x", "y"]}]}))
    for _ in range(2):  # a second call keeps the links
        for seed, root in enumerate(roots):
            photos.set_up_photos(root, seed=seed)
            links = {path.name: path.resolve() for path in root.iterdir()}
            expected = {"coco": data / "coco_parts", "flickr8k": data / "flickr8k", "photos": output / "photos"}
            assert links == expected and all(path.is_symlink() for path in root.iterdir())
    assert given == [(output / "photos", ["x", "y"])] * 4


def test_embeddings_have_the_names_of_the_classes_and_those_that_are_there_stay(tmp_path, monkeypatch):
    spoken = []
    monkeypatch.setattr("clim.text.build_text_tower", lambda name: None)
    monkeypatch.setattr(
        "clim.text.class_embeddings", lambda _, names, prompt: spoken.append(names) or torch.zeros(len(names), 2)
    )
    monkeypatch.setattr(photos, "prefill", lambda cache, texts: None)
    for _ in range(2):
        photos.write_text_embeddings(tmp_path, [])
    assert [len(names) for names in spoken] == [80, 133]
    for file, names in (("coco_minilm", COCO_NAMES), ("coco_panoptic_minilm", PANOPTIC_NAMES)):
        assert json.loads((tmp_path / f"{file}.names.json").read_text()) == list(names)
        assert np.load(tmp_path / f"{file}.npy").shape == (len(names), 2)


def test_novel_classes_count_as_named_from_ten_photos_on(tmp_path):
    path = tmp_path / photos.CAPTIONS
    path.parent.mkdir(parents=True)
    tags = [[17], [17, 18, 5, 1]] + [[18, 5, 1]] * 9
    categories = [{"id": key, "name": name} for key, name in ((1, "person"), (5, "airplane"), (17, "cat"), (18, "dog"))]
    images = [{"id": i, "pos_category_ids": ids} for i, ids in enumerate(tags)]
    path.write_text(json.dumps({"images": images, "categories": categories}))
    rows = [("person", "base", 50), ("airplane", "novel", 4), ("cat", "novel", 30), ("dog", "novel", 7)]
    rows = [dict(zip(("class", "split", "AP50"), row, strict=True)) for row in rows]
    assert photos.named_figures({"per_class": rows}, tmp_path) == {"AP50_named": 5.5}
    rows[1]["AP50"] = None  # a class without objects
    assert photos.named_figures({"per_class": rows}, tmp_path) == {"AP50_named": 7}
    assert photos.named_figures({"per_class": rows[:3]}, tmp_path) == {"AP50_named": None}


def test_classes_are_spoken_as_people_say_them_and_stay_different():
    spoken = dict(zip(PANOPTIC_NAMES, map(photos.spoken_class, PANOPTIC_NAMES), strict=True))
    assert len(set(spoken.values())) == len(spoken) == 133
    assert all(spoken[name] == name for name in COCO_NAMES)
    assert [spoken[name] for name in ("floor-other-merged", "door-stuff", "wall-brick", "tree-merged")] == [
        "floor", "door", "wall brick", "tree",
    ]  # fmt: skip
