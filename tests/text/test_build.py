"""From a name to a tower, and what identifies a tower before it is loaded."""

import pytest
import torch

from clim.errors import UserError
from clim.text.build import build_text_tower, tower_stamp


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    build_text_tower(name="tiny-clip")
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_name():
    with pytest.raises(UserError, match="'ViT-B32' is neither an open_clip model.*nor minilm"):
        build_text_tower(name="ViT-B32")


def test_stamp_changes_with_the_file(clip_file):
    stamp = tower_stamp(name="tiny-clip", pretrained=str(clip_file))
    assert stamp == tower_stamp(name="tiny-clip", pretrained=str(clip_file))
    clip_file.touch()
    assert stamp != tower_stamp(name="tiny-clip", pretrained=str(clip_file))


def test_stamp_of_tag_folder_and_random_weights():
    openai = tower_stamp(name="ViT-B-32-quickgelu", pretrained="openai")
    assert openai != tower_stamp(name="ViT-B-32", pretrained="openai")
    assert tower_stamp(name="minilm") == tower_stamp(name="minilm", pretrained="ignored")
    assert tower_stamp(name="tiny-clip") is None
