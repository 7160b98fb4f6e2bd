"""Files of the commands: arrays, json that may be missing, a filled cache of captions."""

import numpy as np
import pytest
import torch

from clim.errors import UserError
from clim.text import CaptionCache
from clim_commands import outputs


def test_arrays_appear_whole(tmp_path):
    rows = np.arange(6, dtype=np.float16).reshape(2, 3)
    outputs.write_array(tmp_path / "new/rows", rows)  # without a suffix
    found = np.load(tmp_path / "new/rows")
    assert found.dtype == np.float16 and np.array_equal(found, rows)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows"]


def test_a_note_may_be_missing_but_not_damaged(tmp_path):
    assert outputs.read_note(tmp_path / "none.json", remedy="remove it") is None
    (tmp_path / "whole.json").write_text('{"é": 1}', "utf-8")
    assert outputs.read_note(str(tmp_path / "whole.json"), kind=dict[str, int], remedy="remove it") == {"é": 1}
    (tmp_path / "broken.json").write_text('{"images": [')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "link.json").symlink_to("nowhere")
    for path in ("broken.json", "binary.json", "link.json", "."):
        with pytest.raises(UserError, match=f"{tmp_path / path}.*: remove it"):
            outputs.read_note(tmp_path / path, remedy="remove it")


class Tower:
    """Row i of a text "i" points along axis i."""

    fingerprint, dim = "f" * 32, 8

    def __init__(self):
        self.asked = []

    def encode(self, texts):
        self.asked.append(list(texts))
        return torch.eye(8)[[int(text) for text in texts]]


def test_prefill_stores_unknown_texts_chunk_by_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "CHUNK", 3)
    texts, tower, idle = [str(i % 8) for i in range(20)], Tower(), Tower()
    cache = CaptionCache(tower, tmp_path)
    cache.encode(["5"])
    assert outputs.prefill(cache, iter(texts)) == 7
    assert [len(asked) for asked in tower.asked] == [1, 3, 3, 1]
    assert outputs.prefill(CaptionCache(idle, tmp_path), texts) == 0 and not idle.asked
    assert torch.equal(cache.encode(texts), torch.eye(8).repeat(3, 1)[:20])
