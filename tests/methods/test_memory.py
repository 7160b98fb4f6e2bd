"""The queue: newest first, bounded, in no checkpoint. Rows of all processes: order, numbers, gradients."""

import pytest
import torch
from torch.nn.functional import normalize

from clim.losses import symmetric_info_nce
from clim.methods.memory import TextQueue, gather_rows


def rows(*values):
    return torch.tensor([[float(v), -float(v)] for v in values])


def contents(queue):
    embeddings, ids = queue.read()
    assert torch.equal(embeddings[:, 0], -embeddings[:, 1])
    return list(zip(embeddings[:, 0].tolist(), ids.tolist(), strict=True))


@pytest.mark.parametrize("length, batch", [(7, 1), (7, 3), (7, 7), (7, 10), (1, 2), (0, 2)])
def test_newest_first_and_the_oldest_fall_out(length, batch):
    """Also in a batch longer than the queue; image id 0 counts."""
    queue, expected = TextQueue(length, 2), []
    for step in range(6):
        values = list(range(step * batch, (step + 1) * batch))
        queue.push(rows(*values), torch.tensor(values))
        expected = ([(v, v) for v in values] + expected)[:length]
        assert contents(queue) == expected


def test_nothing_and_the_same_image_twice():
    queue = TextQueue(4, 2)
    embeddings, ids = queue.read()
    assert embeddings.shape == (0, 2) and ids.shape == (0,) and ids.dtype == torch.int64
    queue.push(rows(1, 2), torch.tensor([7, 7]))
    queue.push(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    assert contents(queue) == [(1, 7), (2, 7)]


def test_it_is_in_no_checkpoint_and_has_no_parameters():
    queue = TextQueue(3, 2)
    assert queue.state_dict() == {} and list(queue.parameters()) == []
    assert {name for name, _ in queue.named_buffers()} == {"embeddings", "image_ids"}


def test_a_push_keeps_the_buffers_and_no_graph_in_float32():
    """DDP and the rank's state hold on to the tensors, so they are written in place; what was read stays."""
    queue = TextQueue(3, 2)
    before, read = dict(queue.named_buffers()), queue.read()
    new = rows(1, 2).bfloat16().requires_grad_()
    queue.push(new, torch.tensor([1, 2]))
    assert all(buffer is before[name] for name, buffer in queue.named_buffers())
    assert not queue.embeddings.requires_grad and queue.embeddings.dtype == torch.float32
    with torch.no_grad():
        new += 1
    assert contents(queue) == [(1, 1), (2, 2)] and len(read[1]) == 0


def test_one_process_has_its_own_rows_alone():
    own = torch.randn(3, 4, requires_grad=True)
    gathered, start = gather_rows(own)
    assert gathered is own and start == 0


def test_processes_may_hold_different_numbers_of_pairs(ranks, clip_ranks):
    inputs, captions = clip_ranks.pairs(5, seed=1)
    for rank, start in ((0, 0), (1, 1)):
        gathered, begin = ranks[rank]["unequal_gathered"]
        assert torch.equal(gathered, inputs) and begin == start
    weight = clip_ranks.start_weight()
    images = normalize(inputs @ weight, dim=-1)
    shares = [
        symmetric_info_nce(images[a:b], captions[a:b], images, captions, scale=20.0, start=a)
        for a, b in ((0, 1), (1, 5))
    ]
    mean = sum(shares) / 2
    mean.backward()
    torch.testing.assert_close(sum(rank["unequal"][0] for rank in ranks) / 2, mean.detach())
    torch.testing.assert_close(sum(rank["unequal"][1] for rank in ranks) / 2, weight.grad)
