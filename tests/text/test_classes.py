"""Prompts of class names, their embeddings, files of embeddings, and the tool that writes them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.categories import BASE_NAMES, NOVEL_NAMES
from clim.errors import UserError
from clim.text import CaptionCache, LazyTower, build_text_tower
from clim.text.classes import CLASS_FEATURES, class_embeddings, ensemble, load_embeddings, word_piece_means

NAMES = [f"class {i}" for i in range(70)]  # more than one chunk


def test_ensemble_is_the_normalised_mean_of_normalised_prompts(hash_tower):
    embeddings = class_embeddings(hash_tower(5), NAMES, "ensemble")
    assert embeddings.shape == (70, 5)
    for name, embedding in zip(NAMES[::23], embeddings[::23], strict=True):
        mean = sum(hash_tower(5).encode([text])[0] for text in ensemble(name)) / 63
        torch.testing.assert_close(embedding, mean / mean.norm())


def test_single_prompts(hash_tower):
    tower = hash_tower(5)
    found = class_embeddings(tower, ["dog", "aerosol_can"], "a")
    torch.testing.assert_close(found, tower.encode(["a dog", "a aerosol_can"]))  # Detic's: the raw name, never "an"
    torch.testing.assert_close(class_embeddings(tower, ["dog"], "name"), tower.encode(["dog"]))
    assert class_embeddings(tower, []).shape == (0, 5)
    with pytest.raises(UserError, match="'an' is unknown: choose one of a, ensemble, name"):
        class_embeddings(tower, NAMES, "an")


# ---- prompts


def test_ensemble_of_a_consonant():
    texts = ensemble("dog")
    assert len(texts) == len(set(texts)) == 63
    assert texts[:5] == [
        "There is a dog in the scene.",
        "There is the dog in the scene.",
        "This is a photo of a dog in the scene.",
        "This is a photo of the dog in the scene.",
        "This is a photo of one dog in the scene.",
    ]
    for text in (
        "itap of my dog.",
        "This is a photo of many dog.",
        "This is a bad photo of the dog.",
        "This is a photo of the weird dog.",
        "This is a photo of a small dog.",
        "This is a photo of the dirty dog.",
        "This is a dark photo of a dog.",
        "This is a photo of a hard to see dog.",
        "This is a jpeg corrupted photo of the dog.",
        "This is a black and white photo of a dog.",
        "This is the plushie dog.",
        "This is an embroidered dog.",
        "This is a painting of the dog.",
    ):
        assert text in texts


def test_article_name_and_prefix():
    texts = ensemble("apple")
    assert "itap of an apple." in texts and "This is a close-up photo of an apple." in texts
    assert "itap of a apple." not in texts
    # These families have a literal "a", whatever follows.
    assert "This is a toy apple." in texts and "This is a painting of a apple." in texts
    assert "itap of a apple." in ensemble("Apple")  # the article looks at the raw name
    assert "itap of my bow or ribbon tied jr." in ensemble("Bow/ribbon_tied Jr.")
    without = [text for text in ensemble("dog") if not text.startswith("This is ")]
    assert sorted({text.split()[0] for text in without}) == ["There", "itap"] and len(without) == 5


@settings(max_examples=30, deadline=None)
@given(st.text("abetxEX _/.-", max_size=12))
def test_any_name_gives_63_prefixed_texts(name):
    texts = ensemble(name)
    assert len(texts) == 63
    assert not any(text.startswith(("a", "the")) for text in texts)


# ---- word-piece means


@pytest.fixture(scope="module")
def minilm():
    return build_text_tower(name="minilm")


def test_the_names_of_ovcoco_that_bert_takes_to_pieces(minilm):
    """Golden: bert-base-uncased's vocabulary, which MiniLM shares, has 54 of the 65 names whole (ovrcnn §5)."""
    names = [*BASE_NAMES, *NOVEL_NAMES]
    assert len(names) == 65
    pieces = {name: len(tokens) - 2 for name, tokens in zip(names, minilm.tokenize(names), strict=True)}
    assert {name: count for name, count in pieces.items() if count > 1} == {
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
    with pytest.raises(UserError, match="class name ' ' has words .* not know, or none"):
        word_piece_means(tower, ["dog", " "])
    with pytest.raises(UserError, match="'dog 🐶' has words that the text tower does not know"):
        word_piece_means(tower, ["dog", "dog 🐶"])


def test_a_lazy_and_a_cached_tower_show_their_words(tiny_bert, tmp_path):
    lazy = LazyTower(name=str(tiny_bert), pretrained="")
    cached = CaptionCache(LazyTower(name=str(tiny_bert), pretrained=""), tmp_path)
    direct = build_text_tower(name=str(tiny_bert))
    assert direct.live is direct
    for tower in (lazy, cached):
        assert torch.equal(word_piece_means(tower.live, ["dogs"]), word_piece_means(direct, ["dogs"]))


# ---- files


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_load_normalises_rows(tmp_path, dtype):
    array = (np.arange(1, 13).reshape(3, 4) * 2).astype(dtype)
    np.save(tmp_path / "e.npy", array)
    embeddings = load_embeddings(tmp_path / "e.npy")
    assert embeddings.dtype == torch.float32
    reference = array.astype(np.float64) / np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings.numpy(), reference, rtol=1e-6)
    assert load_embeddings(tmp_path / "e.npy", unit=False).tolist() == array.tolist()


def with_row(bad):
    array = np.ones((4, 3))
    array[2] = bad
    return array


@pytest.mark.parametrize("content, complaint", [
    (None, "No class embeddings at .*e.npy.*build_text_embeddings.py classes --output"),
    *((np.ones(shape), r"floats \(classes, dimensions\)") for shape in (3, (2, 3, 4), (0, 4), (4, 0))),
    (np.ones((2, 3), np.int64), r"floats \(classes, dimensions\)"), (np.array([{}]), "is not a .npy file"),
    *((with_row(bad), "Row 2") for bad in (0.0, np.nan, np.inf)),
    *((data, "is not a .npy file") for data in (b"", b"not an array", b"\x93NUMPY", {"a": np.ones((2, 3))})),
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


# ---- tools/build_text_embeddings.py -----------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "build_text_embeddings.py"
    spec = importlib.util.spec_from_file_location("build_text_embeddings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tool_writes_class_embeddings(tool, tmp_path):
    output = tmp_path / "new" / "e.npy"
    arguments = ["--names", "dog, puppy,car", "--tower", "minilm", "--prompt", "a", "--output", str(output)]
    tool.main(["classes", *arguments])
    assert np.load(output).dtype == np.float16
    dog, puppy, car = load_embeddings(output)
    assert dog @ puppy > dog @ car + 0.2


def test_hidden_features_of_classes(tool, tiny_json, tmp_path):
    """Normalised, averaged over prompts and normalised; by the tool and by a tower behind a cache."""
    name = tiny_json("vit", text={"context_length": 24})
    tower = build_text_tower(name=name)
    texts = ensemble("dog")
    rows = F.normalize(tower.features(tower.tokenize(texts)).hidden, dim=1)
    cached = CaptionCache(LazyTower(name=name, pretrained="", directory=tmp_path), tmp_path)
    for encoder in (tower, cached):
        found = CLASS_FEATURES["hidden"](encoder, ["dog"], "ensemble")
        torch.testing.assert_close(found, F.normalize(rows.mean(0, keepdim=True), dim=1))
    arguments = ["--names", "dog", "--tower", name, "--pretrained", "", "--device", "cpu"]
    tool.main(["classes", *arguments, "--features", "hidden", "--output", str(tmp_path / "h.npy")])
    assert np.load(tmp_path / "h.npy").dtype == np.float16
    torch.testing.assert_close(load_embeddings(tmp_path / "h.npy"), found, atol=1e-3, rtol=0)


def test_tool_writes_words(tool, tiny_bert, tmp_path):
    output = tmp_path / "words.npy"
    arguments = ["--names", "dog,dogs", "--tower", str(tiny_bert), "--features", "words", "--output", str(output)]
    tool.main(["classes", *arguments])
    expected = word_piece_means(build_text_tower(name=str(tiny_bert)), ["dog", "dogs"])
    assert torch.equal(load_embeddings(output, unit=False), expected)


def test_tool_fills_the_cache(tool, tmp_path, capsys):
    from detectron2.data import DatasetCatalog

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
    assert tool.class_names(dataset="coco", names=None)[:3] == ["person", "bicycle", "car"]
    assert len(tool.class_names(dataset="coco", names=None)) == 80
    assert len(tool.class_names(dataset="mini", names=None)) == 65
    panoptic = tool.class_names(dataset="coco_panoptic", names=None)
    assert panoptic[:80] == tool.class_names(dataset="coco", names=None)
    assert len(panoptic) == 133 and panoptic[80] == "banner"
    categories = [{"id": 2, "name": "aerosol_can"}, {"id": 1, "name": "air_conditioner"}]
    (tmp_path / "lvis.json").write_text(json.dumps({"categories": categories}))
    names = tool.class_names(dataset=str(tmp_path / "lvis.json"), names=None)
    assert names == ["air_conditioner", "aerosol_can"]


def test_tool_user_errors(tool, tmp_path):
    with pytest.raises(UserError, match="neither a known list of classes .coco, .* nor a json"):
        tool.class_names(dataset=str(tmp_path / "absent.json"), names=None)
    with pytest.raises(UserError, match="not registered"):
        tool.captions_of(["no_such_set"])
