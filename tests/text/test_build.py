"""The cache against the tower, damaged files, two processes at once; lazy towers and what identifies a tower."""

import hashlib
import json
import multiprocessing

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.errors import UserError
from clim.text import CaptionCache, LazyTower, build_text_encoder, build_text_tower
from clim.text import build as build_module
from clim.text.build import tower_stamp

DIM = 6


class FakeTower:
    """Embeddings that depend on text and fingerprint only; ``asked`` lists the calls. A ``silent`` one has none."""

    def __init__(self, fingerprint="f" * 32, dim=DIM, silent=False):
        self.fingerprint, self.dim, self.silent = fingerprint, dim, silent
        self.asked = []

    def embedding(self, text):
        seed = int.from_bytes(hashlib.sha256((self.fingerprint + ascii(text)).encode()).digest()[:6], "big")
        return F.normalize(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)), dim=0)

    def encode(self, texts):
        assert not self.silent, f"the tower was run on {texts}"
        self.asked.append(list(texts))
        return torch.stack([self.embedding(text) for text in texts])


def expected(texts, tower=None):
    tower = tower or FakeTower()
    return torch.stack([tower.embedding(text) for text in texts])


def warm(folder):
    """A cache that must know all texts."""
    return CaptionCache(FakeTower(silent=True), folder)


def files(folder, suffix):
    return sorted(folder.rglob(f"*.{suffix}"))


def test_cold_then_warm(tmp_path):
    tower = FakeTower()
    cache = CaptionCache(tower, tmp_path)
    assert torch.equal(cache.encode(["a", "b", "a"]), expected(["a", "b", "a"]))
    assert torch.equal(cache.encode(["b", "c", "a"]), expected(["b", "c", "a"]))
    assert tower.asked == [["a", "b"], ["c"]]
    found = warm(tmp_path)
    embeddings = found.encode(["c", "a", "b", "a"])
    assert torch.equal(embeddings, expected(["c", "a", "b", "a"]))
    assert embeddings.dtype == torch.float32 and len(found) == 3
    embeddings.zero_()  # a copy
    assert torch.equal(found.encode(["a"]), expected(["a"])) and found.encode([]).shape == (0, DIM)
    other = FakeTower("e" * 32, dim=4)  # another tower has its own entries
    assert torch.equal(CaptionCache(other, tmp_path).encode(["a"]), expected(["a"], other))
    assert other.asked == [["a"]]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.text("abc\u00e9\n\ud800", max_size=3), max_size=6), max_size=6))
def test_any_sequence_of_requests(tmp_path_factory, requests):
    folder = tmp_path_factory.mktemp("cache")
    tower = FakeTower()
    for texts in requests:
        embeddings = CaptionCache(tower, folder).encode(texts)
        assert embeddings.shape == (len(texts), DIM)
        for text, embedding in zip(texts, embeddings, strict=True):
            assert torch.equal(embedding, tower.embedding(text))
    asked = [text for texts in tower.asked for text in texts]
    assert len(asked) == len(set(asked))


# ---- damage

TEXTS = [f"text {i}" for i in range(10)]


@pytest.mark.parametrize("suffix, kept_bytes, written, lost", [
    ("rows", 7 * 4 * DIM + 5, b"", range(7, 10)), ("entries", 4 * 20 + 1, b"", range(4, 10)),
    ("rows", 0, b"", range(10)), ("entries", 0, b"", range(10)),
    ("rows", None, b"\0" * 4 * DIM + b"\xff" * 4 * DIM, (2, 3)),  # zeros and nans
])  # fmt: skip
def test_damaged_rows_are_computed_anew(tmp_path, suffix, kept_bytes, written, lost):
    CaptionCache(FakeTower(), tmp_path).encode(TEXTS)
    (file,) = files(tmp_path, suffix)
    with open(file, "r+b") as opened:
        if kept_bytes is not None:
            opened.truncate(kept_bytes)
        opened.seek(2 * 4 * DIM)
        opened.write(written)
    tower = FakeTower()
    assert torch.equal(CaptionCache(tower, tmp_path).encode(TEXTS), expected(TEXTS))
    assert tower.asked == [[TEXTS[i] for i in lost]]
    assert torch.equal(warm(tmp_path).encode(TEXTS), expected(TEXTS))


@pytest.mark.parametrize("suffix", ["rows", "entries"])
def test_every_flipped_bit_is_found(tmp_path, suffix, caplog):
    CaptionCache(FakeTower(), tmp_path).encode(TEXTS[:3])
    (file,) = files(tmp_path, suffix)
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        tower = FakeTower()
        assert torch.equal(CaptionCache(tower, tmp_path).encode(TEXTS[:3]), expected(TEXTS[:3]))
        assert len(tower.asked) == 1
        for new in set(files(tmp_path, "rows") + files(tmp_path, "entries")) - {
            file,
            *file.parent.glob(f"{file.stem}.*"),
        }:
            new.unlink()
    assert ("rows of" in caplog.text) or suffix == "entries"


def test_failed_write_does_not_shift_what_follows(tmp_path):
    cache = CaptionCache(FakeTower(), tmp_path)
    cache.encode(["a"])
    with open(files(tmp_path, "rows")[0], "ab") as opened:
        opened.write(b"half a row")
    for found, texts in ((cache, ["b"]), (warm(tmp_path), ["b", "a"])):
        assert torch.equal(found.encode(texts), expected(texts))


# ---- two processes


def write_400(folder, name, start):
    cache = CaptionCache(FakeTower(), folder)
    start.wait()
    for i in range(0, 400, 4):
        cache.encode([f"{name} {i}", f"shared {i}", f"shared {i + 1}"])


def test_two_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    writers = [context.Process(target=write_400, args=(tmp_path, name, start)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    start.wait()
    # Read while they write: all rows are right, stored or computed.
    texts = [f"shared {i + j}" for i in range(0, 400, 4) for j in (0, 1)]
    assert torch.equal(CaptionCache(FakeTower(), tmp_path).encode(texts), expected(texts))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    texts += [f"{name} {i}" for name in ("one", "two") for i in range(0, 400, 4)]
    assert torch.equal(warm(tmp_path).encode(texts), expected(texts))
    assert len(files(tmp_path, "rows")) >= 2


# ---- LazyTower


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A stand-in for weights on disk: its content is the tower's fingerprint; counts the loadings."""
    path = tmp_path / "weights.pt"
    path.write_text("a" * 32)
    loaded = []

    def build(*, name, pretrained, device):
        loaded.append(path.read_text())
        return FakeTower(path.read_text())

    monkeypatch.setattr(build_module, "build_text_tower", build)
    return path, loaded


def lazy(path, folder, name="ViT-B-32"):
    return LazyTower(name=name, pretrained=str(path) if path else "", directory=folder)


def test_warm_cache_loads_the_tower_for_new_texts_only(weights, tmp_path):
    path, loaded = weights
    cache = CaptionCache(lazy(path, tmp_path / "cache"), tmp_path / "cache")
    assert not loaded and not (tmp_path / "cache").exists()  # before the first use
    cache.encode(["x", "y"])
    assert len(loaded) == 1
    found = CaptionCache(lazy(path, tmp_path / "cache"), tmp_path / "cache")
    assert torch.equal(found.encode(["y", "x"]), expected(["y", "x"], FakeTower("a" * 32)))
    assert found.dim == DIM and len(loaded) == 1
    found.encode(["z"])
    assert len(loaded) == 2


def test_changed_and_touched_weights_load_the_tower_and_random_ones_always_do(weights, tmp_path):
    path, loaded = weights
    for _ in range(2):
        CaptionCache(lazy(None, tmp_path), tmp_path).encode(["x"])
    assert len(loaded) == 2 and not (tmp_path / "towers").exists()
    CaptionCache(lazy(path, tmp_path), tmp_path).encode(["x"])
    path.touch()
    assert len(CaptionCache(lazy(path, tmp_path), tmp_path)) == 1 and len(loaded) == 4  # the rows stay
    path.write_text("b" * 32)
    embeddings = CaptionCache(lazy(path, tmp_path), tmp_path).encode(["x"])
    assert torch.equal(embeddings, expected(["x"], FakeTower("b" * 32)))
    assert loaded == ["a" * 32] * 4 + ["b" * 32]


def test_broken_note_is_replaced_and_without_a_directory_there_is_none(weights, tmp_path):
    path, loaded = weights
    outside, wrong = {"fingerprint": "../../outside", "dim": 3}, {"fingerprint": "a" * 32, "dim": 5, "checksum": 1}
    for content in (
        "",
        "{",
        "[]",
        '{"dim": 3}',
        '{"fingerprint": "x", "dim": null}',
        *map(json.dumps, (outside, wrong)),
    ):
        loaded.clear()
        path.touch()
        assert lazy(path, tmp_path).fingerprint == "a" * 32
        for note in (tmp_path / "towers").iterdir():
            note.write_text(content)
        assert lazy(path, tmp_path).dim == DIM
        assert lazy(path, tmp_path).fingerprint == "a" * 32
        assert len(loaded) == 2
    tower = lazy(path, None)
    assert torch.equal(tower.encode(["x"]), expected(["x"], FakeTower("a" * 32)))
    assert tower.dim == DIM and tower.fingerprint == "a" * 32 and len(loaded) == 3


def test_real_tower_through_the_cache(tmp_path):
    source = {"name": "minilm", "pretrained": "", "directory": tmp_path}
    lazy_tower = LazyTower(**source)
    texts = ["a dog", "two cars", "a dog"]
    cache = CaptionCache(lazy_tower, tmp_path)
    cold = cache.encode(texts)
    torch.testing.assert_close(cold, lazy_tower.encode(texts), atol=1e-6, rtol=0)
    assert cache.live is lazy_tower.live is lazy_tower.live.live and cache.live.word_dim == cache.live.dim == 384
    unloaded = LazyTower(**source)
    assert torch.equal(CaptionCache(unloaded, tmp_path).encode(texts), cold)
    assert "live" not in vars(unloaded) and unloaded.dim == 384


def test_from_config(weights, tmp_path):
    text = {"NAME": "ViT-B-32", "PRETRAINED": str(weights[0]), "CACHE": ""}
    cfg = CfgNode({"MODEL": {"DEVICE": "cpu", "TEXT": text}})
    assert isinstance(build_text_encoder(cfg), LazyTower)
    cfg.MODEL.TEXT.CACHE = str(tmp_path / "cache")
    cache = build_text_encoder(cfg)
    assert not weights[1]
    assert torch.equal(cache.encode(["x"]), expected(["x"], FakeTower("a" * 32)))
    assert files(tmp_path / "cache", "rows")


def test_stamps_and_names(clip_file):
    """A stamp changes with the file; building a tower does not change the random state."""
    stamp = tower_stamp(name="tiny-clip", pretrained=str(clip_file))
    assert stamp == tower_stamp(name="tiny-clip", pretrained=str(clip_file))
    clip_file.touch()
    assert stamp != tower_stamp(name="tiny-clip", pretrained=str(clip_file))
    openai = tower_stamp(name="ViT-B-32-quickgelu", pretrained="openai")
    assert openai != tower_stamp(name="ViT-B-32", pretrained="openai")
    assert tower_stamp(name="minilm") == tower_stamp(name="minilm", pretrained="ignored")
    assert tower_stamp(name="tiny-clip") is None
    before = torch.get_rng_state()
    build_text_tower(name="tiny-clip")
    assert torch.equal(before, torch.get_rng_state())
    for name in ("ViT-B32", "bert-base-uncased"):
        with pytest.raises(UserError, match=f"MODEL.TEXT.NAME '{name}' is neither .*{name} has none"):
            build_text_tower(name=name)
