"""A user's own set: boxes of 20 concepts alone, pairs of all, new images, and a data.yaml of its classes."""

import json

import numpy as np
import pytest
import yaml

import make_mini
from clim.errors import UserError
from mini.concepts import CONCEPTS, NAMES, caption_tags
from mini.generate import draw_image
from mini.images import PHOTOS, draw_scene
from mini.own import STREAMS, build_own, own_concepts


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    return root / "mini_own", build_own(root, seed=3, num_train=30, num_pairs=10, workers=1)


def _json(folder, name):
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


def test_the_concepts_are_20_base_ones_and_differ_between_seeds():
    chosen = [own_concepts(seed).tolist() for seed in (0, 1, 0)]
    assert chosen[0] == chosen[2] != chosen[1]
    for concepts in chosen:
        assert concepts == sorted(set(concepts)) and len(concepts) == 20
        assert not any(CONCEPTS[i].novel for i in concepts)


def test_boxes_are_those_of_the_20_concepts(built):
    folder, summary = built
    train, boxed = _json(folder, "instances_train"), set(own_concepts(3).tolist())
    by_image = {image["id"]: [] for image in train["images"]}
    for a in train["annotations"]:
        by_image[a["image_id"]].append((a["category_id"] - 1, a["bbox"]))
    others = 0
    for index, found in enumerate(by_image.values()):
        rng = np.random.default_rng((3, STREAMS["train"], index))
        drawn = draw_scene(rng, photos=PHOTOS, novel_share=0.25, boxed=own_concepts(3))
        objects = [(c, [float(v) for v in box]) for c, box in zip(drawn.concepts, drawn.boxes(), strict=True)]
        assert found == [o for o in objects if o[0] in boxed] != []
        others += len(objects) - len(found)
    counts = summary["counts"]["train"]
    assert others == counts["objects"] - counts["annotations"] and 0.1 < others / counts["objects"] < 0.4
    assert {c["name"] for c in train["categories"] if c["split"] == "base"} == {NAMES[i] for i in boxed}


def test_pairs_are_new_and_their_tags_are_the_captions(built):
    folder, summary = built
    pairs = _json(folder, "captions_tags")["images"]
    assert [pair["pos_category_ids"] for pair in pairs] == [caption_tags(pair["captions"]) for pair in pairs]
    benchmark = [draw_image(3, "pairs", i, novel_in_scenes=0.1)[1] for i in range(10)]
    assert len(pairs) == 10 and not any(pair["captions"] in benchmark for pair in pairs)
    ids = [image["id"] for name in ("instances_train", "captions_tags") for image in _json(folder, name)["images"]]
    assert len(set(ids)) == 40 and min(ids) > 8_000_000  # ids of the mini benchmark are smaller


def test_data_yaml_names_all_concepts_and_the_files(built):
    folder, _ = built
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert data["classes"] == [NAMES[i] for i in own_concepts(3)]
    assert sorted(data["classes"] + data["novel"]) == sorted(NAMES)
    for part, file in (("train", "boxes"), ("captions", "captions")):
        assert (folder / data[part]["images"]).is_dir() and (folder / data[part][file]).is_file()


def test_the_command_draws_it(tmp_path, capsys):
    words = ["--benchmark", "own", "--output", str(tmp_path), "--workers", "1", "--pairs", "0"]
    make_mini.main([*words, "--train", "2"])
    assert "mini_own" in capsys.readouterr().out and len(list(tmp_path.glob("mini_own/train/*.jpg"))) == 2
    with pytest.raises(UserError, match="has no --val"):
        make_mini.main([*words, "--val", "3"])
