"""The memory of caption embeddings: newest first, bounded, in no checkpoint."""

import pytest
import torch

from clim.methods.queue import TextQueue


def rows(*values):
    return torch.tensor([[float(v), -float(v)] for v in values])


def contents(queue):
    embeddings, ids = queue.read()
    assert torch.equal(embeddings[:, 0], -embeddings[:, 1])
    return list(zip(embeddings[:, 0].tolist(), ids.tolist(), strict=True))


def test_a_new_queue_is_empty():
    embeddings, ids = TextQueue(4, 2).read()
    assert embeddings.shape == (0, 2) and ids.shape == (0,) and ids.dtype == torch.int64


def test_newest_first_in_the_order_of_the_batch():
    queue = TextQueue(6, 2)
    queue.push(rows(1, 2), torch.tensor([11, 12]))
    assert contents(queue) == [(1, 11), (2, 12)]
    queue.push(rows(3, 4, 5), torch.tensor([13, 14, 15]))
    assert contents(queue) == [(3, 13), (4, 14), (5, 15), (1, 11), (2, 12)]


def test_the_oldest_fall_out():
    queue = TextQueue(4, 2)
    queue.push(rows(1, 2, 3), torch.tensor([11, 12, 13]))
    queue.push(rows(4, 5), torch.tensor([14, 15]))
    assert contents(queue) == [(4, 14), (5, 15), (1, 11), (2, 12)]


def test_a_batch_longer_than_the_queue():
    queue = TextQueue(3, 2)
    queue.push(rows(9), torch.tensor([19]))
    queue.push(rows(1, 2, 3, 4, 5), torch.tensor([11, 12, 13, 14, 15]))
    assert contents(queue) == [(1, 11), (2, 12), (3, 13)]


@pytest.mark.parametrize("length, batch", [(7, 1), (7, 3), (7, 7), (7, 10), (1, 2)])
def test_many_pushes_against_a_list(length, batch):
    queue, expected = TextQueue(length, 2), []
    for step in range(6):
        values = list(range(step * batch, (step + 1) * batch))
        queue.push(rows(*values), torch.tensor(values) + 100)
        expected = ([(v, v + 100) for v in values] + expected)[:length]
        assert contents(queue) == expected


def test_the_same_image_may_be_there_twice():
    queue = TextQueue(4, 2)
    queue.push(rows(1, 2), torch.tensor([7, 7]))
    assert contents(queue) == [(1, 7), (2, 7)]


def test_an_empty_batch_changes_nothing():
    queue = TextQueue(4, 2)
    queue.push(rows(1), torch.tensor([11]))
    queue.push(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    assert contents(queue) == [(1, 11)]


def test_a_queue_of_length_zero_stays_empty():
    queue = TextQueue(0, 2)
    queue.push(rows(1, 2), torch.tensor([11, 12]))
    assert contents(queue) == []


def test_image_id_zero_counts():
    queue = TextQueue(3, 2)
    queue.push(rows(1), torch.tensor([0]))
    assert contents(queue) == [(1, 0)]


def test_it_is_in_no_checkpoint_and_has_no_parameters():
    queue = TextQueue(3, 2)
    assert queue.state_dict() == {} and list(queue.parameters()) == []
    assert {name for name, _ in queue.named_buffers()} == {"embeddings", "image_ids"}


def test_a_push_keeps_the_buffers_and_no_graph():
    """DDP and the rank's state hold on to the tensors, so they are written in place."""
    queue = TextQueue(3, 2)
    before = dict(queue.named_buffers())
    new = rows(1, 2).requires_grad_()
    queue.push(new, torch.tensor([1, 2]))
    assert all(buffer is before[name] for name, buffer in queue.named_buffers())
    assert not queue.embeddings.requires_grad
    with torch.no_grad():
        new += 1
    assert contents(queue) == [(1, 1), (2, 2)]


def test_what_was_read_does_not_change_later():
    queue = TextQueue(3, 2)
    queue.push(rows(1), torch.tensor([1]))
    embeddings, ids = queue.read()
    queue.push(rows(5), torch.tensor([5]))
    assert embeddings[:, 0].tolist() == [1] and ids.tolist() == [1]


def test_half_precision_is_stored_as_float32():
    queue = TextQueue(3, 2)
    queue.push(rows(1).bfloat16(), torch.tensor([1]))
    assert queue.read()[0].dtype == torch.float32
