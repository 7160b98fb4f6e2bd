"""Random states and queues of one process, written and brought back."""

import numpy as np
import pytest
import torch
from detectron2.utils.env import seed_all_rng

from clim.engine import rank_state
from clim.engine.rank_state import load_rank_state, random_states_kept, rank_state_path, save_rank_state
from clim.methods.memory import TextQueue


def test_random_states_and_queues_come_back(tmp_path, drawn):
    queue = TextQueue(4, 3)
    queue.push(torch.eye(3), torch.tensor([5, 6, 7]))
    seed_all_rng(3)
    np.random.randn()  # leaves a second normal number in store
    save_rank_state(queue, tmp_path / "state.pth")
    expected = drawn()
    contents = {name: buffer.clone() for name, buffer in queue.named_buffers()}

    seed_all_rng(4)
    queue.push(torch.ones(2, 3), torch.tensor([8, 9]))
    assert load_rank_state(queue, tmp_path / "state.pth")
    assert drawn() == expected
    for name, buffer in queue.named_buffers():
        assert torch.equal(buffer, contents[name])


def test_what_the_config_decides_is_not_brought_back(tmp_path):
    model = torch.nn.Module()
    model.queue = TextQueue(4, 3)
    model.register_buffer("class_mask", torch.ones(2), persistent=False)
    save_rank_state(model, tmp_path / "state.pth")
    model.class_mask.zero_()
    model.queue.push(torch.ones(1, 3), torch.tensor([1]))
    assert load_rank_state(model, tmp_path / "state.pth")
    assert not model.class_mask.any() and (model.queue.image_ids == -1).all()


def test_states_that_do_not_fit_change_nothing(tmp_path, monkeypatch, drawn):
    queue = TextQueue(4, 3)
    assert not load_rank_state(queue, tmp_path / "missing.pth")
    save_rank_state(queue, tmp_path / "state.pth")
    longer = TextQueue(5, 3)
    longer.push(torch.ones(1, 3), torch.tensor([1]))
    seed_all_rng(1)
    expected = drawn()
    seed_all_rng(1)
    assert not load_rank_state(longer, tmp_path / "state.pth")
    monkeypatch.setattr(rank_state.comm, "get_world_size", lambda: 2)
    assert not load_rank_state(queue, tmp_path / "state.pth")
    assert drawn() == expected and longer.image_ids.tolist() == [1, -1, -1, -1, -1]


def test_random_states_are_kept_around_an_error(drawn):
    seed_all_rng(9)
    expected = drawn()
    seed_all_rng(9)
    with pytest.raises(ValueError), random_states_kept():
        drawn()
        raise ValueError
    assert drawn() == expected


def test_each_process_has_its_own_file(monkeypatch):
    assert rank_state_path("out", 4999).name == "iteration_0004999.rank0.pth"
    monkeypatch.setattr(rank_state.comm, "get_rank", lambda: 3)
    assert rank_state_path("out", 4999).name == "iteration_0004999.rank3.pth"
