"""The cache against the tower, damage of its files, two processes at once, and the rows on disk."""

import hashlib
import multiprocessing

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.text import LazyTower, build_text_encoder
from clim.text import build as build_module
from clim.text import cache as cache_module
from clim.text.cache import CaptionCache

DIM = 6


class FakeTower:
    """Embeddings that depend on text and fingerprint only; remembers what it was asked."""

    def __init__(self, fingerprint="f" * 32, dim=DIM):
        self.fingerprint, self.dim = fingerprint, dim
        self.asked = []

    def embedding(self, text):
        seed = int.from_bytes(hashlib.sha256((self.fingerprint + text).encode()).digest()[:6], "big")
        return F.normalize(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)), dim=0)

    def encode(self, texts):
        self.asked.append(list(texts))
        return torch.stack([self.embedding(text) for text in texts])


class SilentTower(FakeTower):
    def encode(self, texts):
        raise AssertionError(f"the tower was run on {texts}")


def expected(texts, tower=None):
    tower = tower or FakeTower()
    return torch.stack([tower.embedding(text) for text in texts])


def files(folder, suffix):
    return sorted(folder.rglob(f"*.{suffix}"))


def test_cold_then_warm(tmp_path):
    tower = FakeTower()
    cache = CaptionCache(tower, tmp_path)
    assert torch.equal(cache.encode(["a", "b", "a"]), expected(["a", "b", "a"]))
    assert torch.equal(cache.encode(["b", "c", "a"]), expected(["b", "c", "a"]))
    assert tower.asked == [["a", "b"], ["c"]]
    warm = CaptionCache(SilentTower(), tmp_path)
    embeddings = warm.encode(["c", "a", "b", "a"])
    assert torch.equal(embeddings, expected(["c", "a", "b", "a"]))
    assert embeddings.dtype == torch.float32 and len(warm) == 3
    embeddings.zero_()  # a copy
    assert torch.equal(warm.encode(["a"]), expected(["a"])) and warm.encode([]).shape == (0, DIM)


def test_another_text_or_another_tower_is_another_entry(tmp_path):
    CaptionCache(FakeTower(), tmp_path).encode(["a dog"])
    tower = FakeTower()
    CaptionCache(tower, tmp_path).encode(["a dog."])
    assert tower.asked == [["a dog."]]
    other = FakeTower("e" * 32, dim=4)
    assert torch.equal(CaptionCache(other, tmp_path).encode(["a dog"]), expected(["a dog"], other))
    assert other.asked == [["a dog"]]


def test_prefill(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_CHUNK", 3)
    texts = [str(i % 8) for i in range(20)]
    tower = FakeTower()
    cache = CaptionCache(tower, tmp_path)
    cache.encode(["5"])
    assert cache.prefill(texts) == 7
    assert [len(asked) for asked in tower.asked] == [1, 3, 3, 1]
    assert CaptionCache(SilentTower(), tmp_path).prefill(texts) == 0
    assert torch.equal(CaptionCache(SilentTower(), tmp_path).encode(texts), expected(texts))


def test_many_sessions_add_up(tmp_path):
    for i in range(5):
        CaptionCache(FakeTower(), tmp_path).encode([f"{i}", "shared"])
    texts = ["3", "shared", "0", "4", "1", "2"]
    assert torch.equal(CaptionCache(SilentTower(), tmp_path).encode(texts), expected(texts))
    assert len(files(tmp_path, "rows")) == 5


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.text("abc\u00e9\n\ud800", max_size=3), max_size=6), max_size=6))
def test_any_sequence_of_requests(tmp_path_factory, requests):
    folder = tmp_path_factory.mktemp("cache")
    tower = SurrogateTower()
    for texts in requests:
        embeddings = CaptionCache(tower, folder).encode(texts)
        assert embeddings.shape == (len(texts), DIM)
        for text, embedding in zip(texts, embeddings, strict=True):
            assert torch.equal(embedding, tower.embedding(text))
    asked = [text for texts in tower.asked for text in texts]
    assert len(asked) == len(set(asked))


class SurrogateTower(FakeTower):
    def embedding(self, text):
        return super().embedding(ascii(text))


# ---- damage -----------------------------------------------------------------------------------------

TEXTS = [f"text {i}" for i in range(10)]


@pytest.mark.parametrize(
    "suffix, kept_bytes, lost",
    [("rows", 7 * 4 * DIM + 5, 3), ("keys", 4 * 16 + 1, 6), ("rows", 0, 10), ("keys", 0, 10)],
)
def test_truncated_shard_is_computed_anew(tmp_path, suffix, kept_bytes, lost):
    CaptionCache(FakeTower(), tmp_path).encode(TEXTS)
    (file,) = files(tmp_path, suffix)
    with open(file, "r+b") as opened:
        opened.truncate(kept_bytes)
    tower = FakeTower()
    assert torch.equal(CaptionCache(tower, tmp_path).encode(TEXTS), expected(TEXTS))
    assert tower.asked == [TEXTS[10 - lost :]]
    assert torch.equal(CaptionCache(SilentTower(), tmp_path).encode(TEXTS), expected(TEXTS))


def test_zeroed_or_garbled_rows_are_computed_anew(tmp_path):
    CaptionCache(FakeTower(), tmp_path).encode(TEXTS)
    (file,) = files(tmp_path, "rows")
    with open(file, "r+b") as opened:
        opened.seek(2 * 4 * DIM)
        opened.write(b"\0" * 4 * DIM)
        opened.write(b"\xff" * 4 * DIM)  # NaN
    tower = FakeTower()
    assert torch.equal(CaptionCache(tower, tmp_path).encode(TEXTS), expected(TEXTS))
    assert tower.asked == [TEXTS[2:4]]
    assert torch.equal(CaptionCache(SilentTower(), tmp_path).encode(TEXTS), expected(TEXTS))


def test_failed_write_does_not_shift_what_follows(tmp_path):
    cache = CaptionCache(FakeTower(), tmp_path)
    cache.encode(["a"])
    with open(files(tmp_path, "rows")[0], "ab") as opened:
        opened.write(b"half a row")
    assert torch.equal(cache.encode(["b"]), expected(["b"]))
    assert torch.equal(CaptionCache(SilentTower(), tmp_path).encode(["b", "a"]), expected(["b", "a"]))


# ---- two processes ----------------------------------------------------------------------------------


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
    # Read while they write: what is found is right, the rest is computed.
    texts = [f"shared {i + j}" for i in range(0, 400, 4) for j in (0, 1)]
    assert torch.equal(CaptionCache(FakeTower(), tmp_path).encode(texts), expected(texts))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    texts += [f"{name} {i}" for name in ("one", "two") for i in range(0, 400, 4)]
    assert torch.equal(CaptionCache(SilentTower(), tmp_path).encode(texts), expected(texts))


# ---- LazyTower --------------------------------------------------------------------------------------


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


def test_warm_cache_never_loads_the_tower(weights, tmp_path):
    path, loaded = weights
    CaptionCache(lazy(path, tmp_path / "cache"), tmp_path / "cache").encode(["x", "y"])
    assert len(loaded) == 1
    warm = CaptionCache(lazy(path, tmp_path / "cache"), tmp_path / "cache")
    assert torch.equal(warm.encode(["y", "x"]), expected(["y", "x"], FakeTower("a" * 32)))
    assert warm.dim == DIM and len(loaded) == 1
    warm.encode(["z"])  # a new text does
    assert len(loaded) == 2


def test_changed_weights_are_noticed(weights, tmp_path):
    path, loaded = weights
    CaptionCache(lazy(path, tmp_path), tmp_path).encode(["x"])
    path.write_text("b" * 32)
    embeddings = CaptionCache(lazy(path, tmp_path), tmp_path).encode(["x"])
    assert torch.equal(embeddings, expected(["x"], FakeTower("b" * 32)))
    assert loaded == ["a" * 32, "b" * 32]


def test_touched_weights_load_the_tower_but_keep_the_cache(weights, tmp_path):
    path, loaded = weights
    CaptionCache(lazy(path, tmp_path), tmp_path).encode(["x"])
    path.touch()
    cache = CaptionCache(lazy(path, tmp_path), tmp_path)
    assert len(cache) == 1 and len(loaded) == 2


def test_random_weights_are_never_noted(weights, tmp_path):
    for _ in range(2):
        CaptionCache(lazy(None, tmp_path), tmp_path).encode(["x"])
    assert len(weights[1]) == 2 and not (tmp_path / "towers").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dim": 3}', '{"fingerprint": "x", "dim": null}'])
def test_broken_note_is_replaced(weights, tmp_path, content):
    path, loaded = weights
    assert lazy(path, tmp_path).fingerprint == "a" * 32
    (note,) = (tmp_path / "towers").iterdir()
    note.write_text(content)
    assert lazy(path, tmp_path).dim == DIM
    assert lazy(path, tmp_path).fingerprint == "a" * 32
    assert len(loaded) == 2


def test_nothing_is_loaded_or_written_before_the_first_use(weights, tmp_path):
    CaptionCache(lazy(weights[0], tmp_path / "cache"), tmp_path / "cache")
    assert not weights[1] and not (tmp_path / "cache").exists()


def test_without_a_directory_the_tower_is_asked(weights):
    tower = lazy(weights[0], None)
    assert torch.equal(tower.encode(["x"]), expected(["x"], FakeTower("a" * 32)))
    assert tower.dim == DIM and tower.fingerprint == "a" * 32 and len(weights[1]) == 1


def test_real_tower_through_the_cache(tmp_path):
    source = {"name": "minilm", "pretrained": "", "directory": tmp_path}
    live = LazyTower(**source)
    texts = ["a dog", "two cars", "a dog"]
    cold = CaptionCache(live, tmp_path).encode(texts)
    torch.testing.assert_close(cold, live.encode(texts), atol=1e-6, rtol=0)
    unloaded = LazyTower(**source)
    assert torch.equal(CaptionCache(unloaded, tmp_path).encode(texts), cold)
    assert "live" not in vars(unloaded) and unloaded.dim == 384


def test_the_live_tower_behind_any_encoder(tmp_path):
    lazy_tower = LazyTower(name="minilm", pretrained="", directory=tmp_path)
    tower = CaptionCache(lazy_tower, tmp_path).live
    assert tower is lazy_tower.live and tower is CaptionCache(tower, tmp_path).live
    assert tower.word_dim == tower.hidden_dim == tower.dim == 384


def test_from_config(weights, tmp_path):
    text = {"NAME": "ViT-B-32", "PRETRAINED": str(weights[0]), "CACHE": ""}
    cfg = CfgNode({"MODEL": {"DEVICE": "cpu", "TEXT": text}})
    assert isinstance(build_text_encoder(cfg), LazyTower)
    cfg.MODEL.TEXT.CACHE = str(tmp_path / "cache")
    cache = build_text_encoder(cfg)
    assert not weights[1]
    assert torch.equal(cache.encode(["x"]), expected(["x"], FakeTower("a" * 32)))
    assert files(tmp_path / "cache", "rows")
