"""What configs/mini find under a data root that was set up."""

import numpy as np
import torch

from clim.text import build_text_tower, class_embeddings, load_embeddings, word_piece_means
from mini.concepts import NAMES
from mini.setup import CLASS_EMBEDDINGS, write_class_embeddings


def test_class_embeddings_of_every_config(tiny_mini, load_cfg):
    tower = build_text_tower(name="minilm")
    files = {load_cfg(f"mini/{name}.yaml").MODEL.VOCABULARY.EMBEDDINGS for name in ("detic", "ovrcnn")}
    assert files == set(CLASS_EMBEDDINGS)
    sentences, words = (tiny_mini / name for name in CLASS_EMBEDDINGS)
    expected = class_embeddings(tower, NAMES, "a")
    torch.testing.assert_close(load_embeddings(sentences), expected)
    assert torch.equal(load_embeddings(words, unit=False), word_piece_means(tower, NAMES))


def test_only_what_is_missing_is_written(tmp_path):
    present, missing = (tmp_path / name for name in CLASS_EMBEDDINGS)
    present.parent.mkdir(parents=True)
    present.write_bytes(b"kept")
    write_class_embeddings(tmp_path)
    assert present.read_bytes() == b"kept" and np.load(missing).shape == (65, 384)
    assert sorted(path.name for path in present.parent.iterdir()) == sorted([present.name, missing.name])
