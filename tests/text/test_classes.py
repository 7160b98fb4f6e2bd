"""Prompts of class names, their embeddings, files of embeddings, and the tool that writes them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import OPENAI_IMAGENET_TEMPLATES

from clim.data.categories import BASE_NAMES, NOVEL_NAMES
from clim.errors import UserError
from clim.text import CaptionCache, LazyTower, build_text_tower
from clim.text.classes import CLASS_FEATURES, class_embeddings, ensemble, imagenet, load_embeddings, word_piece_means

NAMES = [f"class {i}" for i in range(70)]  # more than one chunk


def test_a_class_embedding_is_the_normalised_mean_of_normalised_prompts(hash_tower):
    tower = hash_tower(5)
    embeddings = class_embeddings(tower, NAMES, "ensemble")
    assert embeddings.shape == (70, 5)
    for name, embedding in zip(NAMES[::23], embeddings[::23], strict=True):
        mean = sum(tower.encode([text])[0] for text in ensemble(name)) / 63
        torch.testing.assert_close(embedding, mean / mean.norm())
    found = class_embeddings(tower, ["dog", "aerosol_can"], "a")
    torch.testing.assert_close(found, tower.encode(["a dog", "a aerosol_can"]))  # Detic's: the raw name, never "an"
    torch.testing.assert_close(class_embeddings(tower, ["dog"], "name"), tower.encode(["dog"]))
    assert class_embeddings(tower, []).shape == (0, 5)


# ---- prompts


def test_ensemble_of_a_consonant():
    texts = ensemble("dog")
    assert len(texts) == len(set(texts)) == 63
    assert texts[:2] == ["There is a dog in the scene.", "There is the dog in the scene."]
    expected = """a photo of a dog in the scene|a photo of the dog in the scene|a photo of one dog in the scene
        a photo of many dog|a bad photo of the dog|a photo of the weird dog|a photo of a small dog
        a photo of the dirty dog|a dark photo of a dog|a photo of a hard to see dog|a jpeg corrupted photo of the dog
        a black and white photo of a dog|the plushie dog|an embroidered dog|a painting of the dog"""
    expected = [f"This is {part.strip()}." for line in expected.splitlines() for part in line.split("|")]
    assert texts[2:5] == expected[:3] and {"itap of my dog.", *expected} < set(texts)


def test_article_name_and_prefix():
    texts = ensemble("apple")
    assert "itap of an apple." in texts and "This is a close-up photo of an apple." in texts
    assert "itap of a apple." not in texts
    # These families have a literal "a", whatever follows.
    assert "This is a toy apple." in texts and "This is a painting of a apple." in texts
    assert "itap of a apple." in ensemble("Apple")  # the article depends on the raw name
    assert "itap of my bow or ribbon tied jr." in ensemble("Bow/ribbon_tied Jr.")
    without = [text for text in ensemble("dog") if not text.startswith("This is ")]
    assert sorted({text.split()[0] for text in without}) == ["There", "itap"] and len(without) == 5


@settings(max_examples=30, deadline=None)
@given(st.text("abetxEX _/.-", max_size=12))
def test_any_name_gives_63_prefixed_texts(name):
    texts = ensemble(name)
    assert len(texts) == 63
    assert not any(text.startswith(("a", "the")) for text in texts)


def test_imagenet_prompts_are_regionclips(hash_tower):
    """vldet §2: 81 prompts; normalised, averaged and normalised again."""
    texts = imagenet("dog")
    assert len(texts) == len(set(texts)) == 81 and texts[0] == "dog."
    expected = {"a bad photo of a dog.", "a dog in a video game.", "itap of my dog.", "a embroidered dog."}
    assert expected < set(texts) and texts[1:] == [template("dog") for template in OPENAI_IMAGENET_TEMPLATES]
    for name, clean in (
        ("car_(automobile)", "car automobile"), ("salad+bowl, large", "salad bowl large"), ("apple", "apple"),
    ):  # fmt: skip
        assert imagenet(name)[0] == f"{clean}." and f"a photo of a {clean}." in imagenet(name)
    tower = hash_tower(5)
    (found,) = class_embeddings(tower, ["dog"], "imagenet")
    torch.testing.assert_close(found, F.normalize(F.normalize(tower.encode(texts), dim=1).mean(0), dim=0))


# ---- word-piece means


def test_the_names_of_ovcoco_that_bert_takes_to_pieces():
    """Golden: bert-base-uncased's vocabulary, which MiniLM shares, has 54 of the 65 names whole (ovrcnn §5)."""
    names = [*BASE_NAMES, *NOVEL_NAMES]
    tokens = build_text_tower(name="minilm").tokenize(names)
    pieces = {name: len(ids) - 2 for name, ids in zip(names, tokens, strict=True)}
    assert len(pieces) == 65 and {name: count for name, count in pieces.items() if count > 1} == {
        "giraffe": 3, "frisbee": 3, "broccoli": 3, "handbag": 2, "skis": 2, "snowboard": 2, "skateboard": 2,
        "surfboard": 2, "donut": 2, "toaster": 2, "toothbrush": 2,
    }  # fmt: skip


def test_words_are_plain_means_of_the_rows_of_their_pieces(tiny_bert):
    tower = build_text_tower(name=str(tiny_bert))
    words = (tiny_bert / "vocab.txt").read_text().split()
    rows = tower.state_dict()["model.embeddings.word_embeddings.weight"]
    expected = {
        "dog": [rows[words.index("dog")]],
        "Dogs": [rows[words.index(piece)] for piece in ("dog", "##s")],
        "cat dog": [rows[words.index(piece)] for piece in ("c", "##a", "##t", "dog")],
    }
    means = word_piece_means(tower, list(expected))
    assert means.shape == (3, tower.word_dim) and means.dtype == torch.float32 and not means.requires_grad
    for mean, pieces in zip(means, expected.values(), strict=True):
        torch.testing.assert_close(mean, sum(pieces) / len(pieces))
    assert word_piece_means(tower, []).shape == (0, 32)
    for name in (" ", "dog 🐶"):
        with pytest.raises(UserError, match=f"class name '{name}' has words"):
            word_piece_means(tower, ["dog", name])


# ---- files


def test_load_normalises_rows(tmp_path):
    for dtype in (np.float16, np.float32, np.float64):
        array = (np.arange(1, 13).reshape(3, 4) * 2).astype(dtype)
        np.save(tmp_path / "e.npy", array)
        embeddings = load_embeddings(tmp_path / "e.npy")
        assert embeddings.dtype == torch.float32
        reference = array.astype(np.float64) / np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
        np.testing.assert_allclose(embeddings.numpy(), reference, rtol=1e-6)
        assert load_embeddings(tmp_path / "e.npy", unit=False).tolist() == array.tolist()
        for saved in (array, torch.from_numpy(array), torch.from_numpy(array)[:, None]):  # RegionCLIP's script: K, 1, D
            torch.save(saved, tmp_path / "e.pth")
            assert torch.equal(load_embeddings(tmp_path / "e.pth"), embeddings)


def with_row(bad):
    return np.array([[1.0, 1], [1, 1], [bad, bad]])


@pytest.mark.parametrize("content, complaint", [
    (None, "e.npy is not a file.*build_text_embeddings.py classes --output"),
    *((np.ones(shape), r"floats \(classes, dimensions\)") for shape in (3, (2, 3, 4), (0, 4), (4, 0))),
    (np.ones((2, 3), np.int64), r"floats \(classes, dimensions\)"), (np.array([{}]), "e.npy cannot be read"),
    *((with_row(bad), "Row 2") for bad in (0.0, np.nan, np.inf)),
    *((data, "e.npy cannot be read") for data in (b"", b"not an array", b"\x93NUMPY", b"\x93NUMPY\1\0\1\0{")),
    ({"a": np.ones((2, 3))}, r"floats \(classes, dimensions\)"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, content, complaint):
    path = tmp_path / "e.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif isinstance(content, dict):  # several arrays in an archive
        np.savez(tmp_path / "e", **content)
        (tmp_path / "e.npz").rename(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        load_embeddings(path)


@pytest.mark.parametrize("content, complaint", [
    (None, "e.pth is not a file"), ({"model": torch.ones(2, 3)}, "holds no floats"),
    (torch.ones(2, 3, dtype=torch.bfloat16), "holds no floats"), (torch.ones(2, 2, 3), "holds no floats"),
    (torch.nn.Linear(2, 3), "holds more than tensors"),
])  # fmt: skip
def test_other_files_of_torch_are_refused(tmp_path, content, complaint):
    if content is not None:
        torch.save(content, tmp_path / "e.pth")
    with pytest.raises(UserError, match=complaint):
        load_embeddings(tmp_path / "e.pth")


# ---- tools/build_text_embeddings.py


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "build_text_embeddings.py"
    spec = importlib.util.spec_from_file_location("build_text_embeddings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tool_writes_class_embeddings_and_words(tool, tiny_bert, tmp_path):
    output = tmp_path / "new" / "e.npy"
    arguments = ["--names", "dog, puppy,car", "--tower", "minilm", "--prompt", "a", "--output", str(output)]
    tool.main(["classes", *arguments])
    assert np.load(output).dtype == np.float16
    tool.main(["classes", *arguments[:-1], f"{tmp_path}/e.pth"])
    assert torch.equal(load_embeddings(tmp_path / "e.pth"), load_embeddings(output))
    for path in (output, tmp_path / "e.pth"):
        assert json.loads(path.with_name("e.names.json").read_text()) == ["dog", "puppy", "car"]
    dog, puppy, car = load_embeddings(output)
    assert dog @ puppy > dog @ car + 0.2
    arguments = ["--names", "dog,dogs", "--tower", str(tiny_bert), "--features", "words", "--output", str(output)]
    tool.main(["classes", *arguments])
    expected = word_piece_means(build_text_tower(name=str(tiny_bert)), ["dog", "dogs"])
    assert torch.equal(load_embeddings(output, unit=False), expected)


def test_hidden_features_of_classes(tool, tiny_json, tmp_path):
    """Normalised, averaged over prompts and normalised; by the tool and by a tower behind a cache."""
    name = tiny_json("vit", text={"context_length": 24})
    tower = build_text_tower(name=name)
    rows = F.normalize(tower.features(tower.tokenize(ensemble("dog"))).hidden, dim=1)
    cached = CaptionCache(LazyTower(name=name, pretrained="", directory=tmp_path), tmp_path)
    for encoder in (tower, cached):
        found = CLASS_FEATURES["hidden"](encoder, ["dog"], "ensemble")
        torch.testing.assert_close(found, F.normalize(rows.mean(0, keepdim=True), dim=1))
    arguments = ["--names", "dog", "--tower", name, "--pretrained", "", "--device", "cpu"]
    tool.main(["classes", *arguments, "--features", "hidden", "--output", str(tmp_path / "h.npy")])
    assert np.load(tmp_path / "h.npy").dtype == np.float16
    torch.testing.assert_close(load_embeddings(tmp_path / "h.npy"), found, atol=1e-3, rtol=0)


def test_tool_fills_the_cache(tool, tmp_path, capsys):
    records = [{"captions": ["a dog", "two dogs"]}, {"captions": ["a dog"]}, {"captions": []}]
    DatasetCatalog.register("tool_captions", lambda: records)
    try:
        arguments = ["--dataset", "tool_captions", "--tower", "minilm", "--pretrained", ""]
        tool.main(["captions", *arguments, "--cache", str(tmp_path)])
    finally:
        DatasetCatalog.remove("tool_captions")
    assert "2 captions computed, 2 known" in capsys.readouterr().out
    unloaded = LazyTower(name="minilm", pretrained="", directory=tmp_path)
    assert CaptionCache(unloaded, tmp_path).encode(["two dogs", "a dog"]).shape == (2, 384)
    assert "live" not in vars(unloaded)


def test_tool_knows_class_names(tool, tmp_path):
    def names_of(dataset):
        return tool.class_names(dataset=str(dataset), names=None)

    assert names_of("coco")[:3] == ["person", "bicycle", "car"]
    assert [len(names_of(name)) for name in ("coco", "mini", "coco_panoptic")] == [80, 65, 133]
    assert names_of("coco_panoptic")[:81] == [*names_of("coco"), "banner"]
    categories = [{"id": 2, "name": "aerosol_can"}, {"id": 1, "name": "air_conditioner"}]
    (tmp_path / "lvis.json").write_text(json.dumps({"categories": categories}))
    assert names_of(tmp_path / "lvis.json") == ["air_conditioner", "aerosol_can"]
    (tmp_path / "nouns.txt").write_text("hot dog,12\n car \nÉclair, 3, x\n")
    assert names_of(tmp_path / "nouns.txt") == ["hot dog", "car", "Éclair"]
    (tmp_path / "blank.txt").write_text("hot dog\n\ncar\n")
    with pytest.raises(UserError, match="Name 2 of .*blank.txt is empty"):
        names_of(tmp_path / "blank.txt")
    with pytest.raises(UserError, match="absent.json not found: --dataset takes a known list of classes .coco, "):
        names_of(tmp_path / "absent.json")
    with pytest.raises(UserError, match="not registered"):
        tool.captions_of(["no_such_set"])
