"""Mini OV-LVIS: LVIS's format, frequencies by design, true negatives, masks from the drawings, readable shards."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

import make_mini
from clim.data.shards import read_shards
from clim.errors import UserError
from clim.text import CaptionCache, LazyTower
from clim_commands.outputs import prefill
from mini import lvis
from mini.concepts import CONCEPTS, caption_tags
from mini.generate import CAPTION_CACHE, CLASS_EMBEDDINGS, draw_image
from mini.lvis import FREQUENCIES, build_mini_lvis, draw_labelled, plan_scenes, polygons, set_up_mini_lvis
from tags import word_tags

SIZES = {"num_train": 100, "num_val": 20, "num_pairs": 12}
OFFSETS = {"train": 4_000_000, "val": 5_000_000}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("mini_lvis")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lvis, "PER_SHARD", 5)
        return root / "mini_lvis", build_mini_lvis(root, seed=3, workers=1, **SIZES)


def _json(folder, name):
    return json.loads((folder / "lvis" / f"{name}.json").read_text())


def _scenes(split):
    return [draw_labelled(3, split, i, scene) for i, scene in enumerate(plan_scenes(3, split, SIZES[f"num_{split}"]))]


def _rasterized(segmentation):
    return rle.decode(rle.merge(rle.frPyObjects(segmentation, 256, 256))).astype(bool)


@pytest.mark.parametrize("seed", [0, 1, 2, 100])
def test_frequencies_by_design(seed):
    assert [frequency == "r" for frequency in FREQUENCIES] == [concept.novel for concept in CONCEPTS]
    assert Counter(FREQUENCIES.tolist()) == {"r": 17, "c": 24, "f": 24}
    train, val = (plan_scenes(seed, split, lvis.DEFAULT_SIZES[split]) for split in ("train", "val"))
    assert len(train) == 1200 and {len(scene) for scene in train} == set(range(1, 7))
    in_train, in_val = (Counter(c for scene in scenes for c in set(scene)) for scenes in (train, val))
    for concept, frequency in enumerate(FREQUENCIES):  # LVIS's own thresholds
        images = in_train[concept]
        assert images > 0 and ("f" if images > 100 else "c" if images > 10 else "r") == frequency
    assert len(in_val) == 65 and max(in_val.values()) <= 1.6 * min(in_val.values())
    assert any(len(set(scene)) < len(scene) for scene in val)


def test_instances_have_lvis_format(built):
    folder, summary = built
    train, norare, val = (_json(folder, f"instances_{name}") for name in ("train", "train_norare", "val"))
    assert sorted(path.name for path in (folder / "lvis").iterdir()) == [
        "instances_train.json", "instances_train_cat_info.json", "instances_train_cat_norare_info.json",
        "instances_train_norare.json", "instances_val.json",
    ]  # fmt: skip
    rare = {i for i, concept in enumerate(CONCEPTS, start=1) if concept.novel}
    assert norare["annotations"] == [a for a in train["annotations"] if a["category_id"] not in rare]
    assert len(norare["annotations"]) < len(train["annotations"])
    assert norare["images"] == train["images"] and train["categories"] == norare["categories"] == val["categories"]
    for split, content in (("train", train), ("val", val)):
        ids = [image["id"] for image in content["images"]]
        assert ids == list(range(OFFSETS[split], OFFSETS[split] + SIZES[f"num_{split}"]))
        assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        counts = summary["counts"][split]
        assert (counts["images"], counts["annotations"]) == (len(ids), len(content["annotations"]))
        image_keys = {"id", "width", "height", "coco_url", "neg_category_ids", "not_exhaustive_category_ids"}
        assert all(set(image) == image_keys for image in content["images"])
        keys = {"id", "image_id", "category_id", "bbox", "area", "segmentation"}
        assert all(set(a) == keys for a in content["annotations"])
    assert summary["counts"]["train"]["annotations without rare"] == len(norare["annotations"])


def test_categories_count_the_annotations(built):
    folder, _ = built
    train = _json(folder, "instances_train")
    pairs = [(a["category_id"], a["image_id"]) for a in train["annotations"]]
    instances, images = Counter(key for key, _ in pairs), Counter(key for key, _ in set(pairs))
    assert _json(folder, "instances_train_cat_info") == train["categories"]
    without_rare = _json(folder, "instances_train_cat_norare_info")
    for i, (row, concept) in enumerate(zip(train["categories"], CONCEPTS, strict=True), start=1):
        names = {"synset": f"{concept.name}.n.01", "synonyms": [concept.name, *concept.synonyms]}
        expected = {"id": i, "name": concept.name, **names, "frequency": FREQUENCIES[i - 1]}
        expected |= {"split": "novel" if concept.novel else "base", "def": f"OpenMoji's drawing {concept.code}"}
        assert row == expected | {"image_count": images[i], "instance_count": instances[i]}
        zero = {"image_count": 0, "instance_count": 0} if concept.novel else {}
        assert without_rare[i - 1] == row | zero


def test_negatives_are_absent_and_the_not_exhaustive_lack_instances(built):
    folder, _ = built
    lacking = []
    for split in OFFSETS:
        content = _json(folder, f"instances_{split}")
        for image, (drawn, _, _) in zip(content["images"], _scenes(split), strict=True):
            present, negatives = Counter(c + 1 for c in drawn.concepts), image["neg_category_ids"]
            assert not present.keys() & set(negatives) and len(set(negatives)) == len(negatives)
            assert Counter(FREQUENCIES[i - 1] for i in negatives) == lvis.NEGATIVES
            annotated = Counter(a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"])
            assert present.keys() == annotated.keys()
            missing = [i for i in present if annotated[i] < present[i]]
            assert image["not_exhaustive_category_ids"] == missing
            lacking.append(len(missing))
    assert 0 < sum(lacking) < len(lacking) / 4


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_are_the_drawn_masks(built, split):
    folder, _ = built
    content = _json(folder, f"instances_{split}")
    for image, (drawn, _, _) in zip(content["images"], _scenes(split), strict=True):
        pixels = cv2.imread(str(folder / "/".join(image["coco_url"].split("/")[-2:])))
        assert pixels.shape == (image["height"], image["width"], 3)
        assert np.abs(pixels.astype(int) - drawn.image).mean() < 8  # JPEG
        masks = {tuple(box): drawn.mask == i for i, box in enumerate(drawn.boxes().tolist())}
        for a in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            mask = masks[tuple(a["bbox"])]
            assert drawn.concepts[drawn.mask[mask][0]] + 1 == a["category_id"] and a["area"] == mask.sum()
            assert all(len(p) >= 6 and len(p) % 2 == 0 for p in a["segmentation"])
            rasterized = _rasterized(a["segmentation"])
            assert (rasterized <= mask).all() and rasterized.sum() > 0.98 * mask.sum()  # specks are left out


def test_polygons_of_holes_parts_and_specks():
    mask = np.zeros((256, 256), bool)
    mask[10:60, 10:90] = True
    mask[20:30, 20:40] = mask[45:50, 70:80] = False  # holes
    mask[100:110, 100:105] = True
    assert len(polygons(mask)) == 2 and np.array_equal(_rasterized(polygons(mask)), mask)
    speck = mask.copy()
    speck[200, 200] = True
    assert polygons(speck) == polygons(mask)


def test_shards_are_img2datasets(built):
    folder, summary = built
    paths = sorted((folder / "pairs").iterdir())
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    index, tags, all_keys = 0, 0, []
    for shard, path in enumerate(paths):
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]
        keys = [name.removesuffix(".jpg") for name, _ in members[::3]]
        assert [name for name, _ in members] == [f"{key}.{end}" for key in keys for end in ("jpg", "json", "txt")]
        assert all(len(key) == 9 and int(key) // 10_000 == shard for key in keys)
        all_keys += keys
        for (_, jpeg), (name, about), (_, text) in zip(members[::3], members[1::3], members[2::3], strict=True):
            drawn, captions = draw_image(3, "pairs", index, novel_in_scenes=0)
            pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            assert np.abs(pixels.astype(int) - drawn.image).mean() < 8
            about = json.loads(about)
            assert about["caption"] == text.decode() == captions[0] and f"{about['key']}.json" == name
            assert (about["height"], about["width"]) == pixels.shape[:2] and about["status"] == "success"
            assert about["tags"] == caption_tags([captions[0]]) and drawn.concepts[0] + 1 in about["tags"]
            index, tags = index + 1, tags + len(about["tags"])
    assert len(set(all_keys)) == 12 and all_keys != sorted(all_keys)
    assert summary["counts"]["pairs"] == {"images": 12, "tags": tags}


def test_files_do_not_depend_on_the_number_of_workers(tmp_path):
    sizes = {"num_train": 8, "num_val": 3, "num_pairs": 4}
    contents = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        summary = build_mini_lvis(root, seed=5, workers=workers, **sizes)
        assert build_mini_lvis(root, seed=5, **sizes) == summary
        files = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        assert json.loads(files.pop(Path("mini_lvis/index/facts.json")))["images"] == 4  # it also has the shards' times
        contents.append(files)
    assert contents[0] == contents[1] and len(contents[0]) == 8 + 3 + 1 + 5 + 1 + 3


def test_the_command_takes_the_benchmark(tmp_path, capsys):
    words = ["--benchmark", "lvis", "--output", str(tmp_path), "--workers", "1"]
    make_mini.main([*words, "--train", "2", "--val", "1", "--pairs", "0"])
    assert "mini_lvis" in capsys.readouterr().out and len(list(tmp_path.glob("mini_lvis/train/*.jpg"))) == 2
    with pytest.raises(UserError, match="lvis has no --cluttered"):
        make_mini.main([*words, "--cluttered", "3"])


def test_set_up_stores_embeddings_and_nouns(tmp_path):
    set_up_mini_lvis(tmp_path, seed=3, num_train=1, num_val=1, num_pairs=60, workers=1)
    assert all((tmp_path / name).is_file() for name in CLASS_EMBEDDINGS)
    folder = tmp_path / CAPTION_CACHE
    cache = CaptionCache(LazyTower(name="minilm", pretrained="", directory=folder), folder)
    captions = [draw_image(3, "pairs", i, novel_in_scenes=0)[1][0] for i in range(60)]
    assert len(cache) == len(set(captions)) and prefill(cache, captions) == 0
    folder = tmp_path / "mini_lvis"
    records = read_shards(str(folder / "pairs/index_nouns"), str(folder / "pairs"), remedy="")
    nouns = [c["name"] for c in json.loads((folder / "metadata/nouns.json").read_text())["categories"]]
    assert [r["captions"] for r in records] == [[caption] for caption in captions]
    assert [r["tags"] for r in records] == [
        word_tags(r["captions"], {i: (n,) for i, n in enumerate(nouns)}) for r in records
    ]
    assert np.load(folder / "metadata/nouns_minilm.npy").shape == (len(nouns), 384) and len(nouns) > 5
