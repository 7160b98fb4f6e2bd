"""ClipContrast, the queue, and the rows of all processes; two processes equal one.

Run as a script (`test_clip.py FOLDER`) this file is the two processes.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax, normalize

from clim.data.tiles import Tiles
from clim.losses import symmetric_info_nce
from clim.methods import Texts
from clim.methods.clip import ClipContrast
from clim.methods.memory import TextQueue, gather_rows
from clim.processes import leave_group

DIM, WIDTH = 5, 7
LARGE = 2**40  # an image id that float32 would round


class Rows:
    """A text tower that hands out prepared rows."""

    def __init__(self, rows):
        self.rows = rows

    def encode(self, captions):
        return self.rows[[int(caption) for caption in captions]]


def pairs(count, seed):
    """(inputs (count, WIDTH), caption embeddings (count, DIM))."""
    generator = torch.Generator().manual_seed(seed)
    inputs, captions = (torch.randn(count, width, generator=generator) for width in (WIDTH, DIM))
    return inputs, normalize(captions, dim=-1)


def start_weight():
    """(WIDTH, DIM) of the linear encoder."""
    return torch.linspace(-1, 1, WIDTH * DIM).sin().view(WIDTH, DIM).requires_grad_()


def loss_and_gradients(inputs, captions):
    """ClipContrast on a linear encoder: the loss, and the gradients of weight and temperature."""
    method, weight = ClipContrast(scale=20.0, max_scale=100.0), start_weight()
    count, names = len(inputs), list(map(str, range(len(inputs))))
    tiles = Tiles(
        boxes=torch.zeros(count, 4), canvas=torch.zeros(count, dtype=torch.int64), image_ids=torch.arange(count),
        captions=[[name] for name in names], drawn=names, tags=[[]] * count,
    )  # fmt: skip
    texts = Texts(tiles, encoder=Rows(captions), class_embeddings=torch.zeros(0, DIM))
    (loss,) = method.losses({"tile": inputs @ weight}, method.select(tiles, None), texts).values()
    loss.backward()
    return loss.detach(), weight.grad, method.logit_scale.grad


def reference(images, texts, scale):
    """Pair by pair: each image must find its text among all, and each text its image."""
    logits = scale * images @ texts.T
    terms = [-log_softmax(logits[i], 0)[i] - log_softmax(logits[:, i], 0)[i] for i in range(len(images))]
    return sum(terms) / (2 * len(images))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 6), share=st.integers(0, 6), seed=st.integers(0, 2**31), scale=st.floats(1.0, 100.0))
def test_the_loss_of_all_rows_and_of_each_process_with_its_own_rows_among_all(count, share, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)
    )
    loss = symmetric_info_nce(images, texts, images, texts, scale=scale)
    torch.testing.assert_close(loss, reference(images, texts, scale))
    share = min(share, count)
    shares = [
        (b - a) * symmetric_info_nce(images[a:b], texts[a:b], images, texts, scale=scale, start=a)
        for a, b in ((0, share), (share, count))
    ]
    torch.testing.assert_close(sum(shares) / count, loss)


def test_the_method_is_the_loss_of_normalised_embeddings():
    inputs, captions = pairs(6, seed=4)
    weight, log_scale = start_weight(), torch.tensor(math.log(20.0), requires_grad=True)
    expected = reference(normalize(inputs @ weight, dim=-1), captions, log_scale.exp())
    expected.backward()
    found = loss_and_gradients(inputs, captions)
    torch.testing.assert_close(found, (expected.detach(), weight.grad, log_scale.grad))
    method = ClipContrast(scale=1.0, max_scale=100.0)
    for value, kept in ((-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))):
        method.logit_scale.data.fill_(value)
        method.after_update()
        assert method.logit_scale.item() == pytest.approx(kept)


# ---- the queue


def contents(queue):
    embeddings, ids = queue.read()
    return list(zip(embeddings[:, 0].tolist(), ids.tolist(), strict=True))


@pytest.mark.parametrize("length, batch", [(7, 1), (7, 3), (7, 7), (7, 10), (1, 2), (0, 2)])
def test_the_queue_has_the_newest_first_and_drops_the_oldest(length, batch):
    """Also in a batch longer than the queue; image id 0 counts."""
    queue, expected = TextQueue(length, 2), []
    embeddings, ids = queue.read()
    assert embeddings.shape == (0, 2) and ids.shape == (0,) and ids.dtype == torch.int64
    for step in range(6):
        values = torch.arange(step * batch, (step + 1) * batch)
        queue.push(values[:, None] * torch.ones(2), values)
        queue.push(torch.zeros(0, 2), values[:0])
        expected = ([(v, v) for v in values.tolist()] + expected)[:length]
        assert contents(queue) == expected


def test_a_push_changes_the_buffers_in_place_without_a_graph_in_float32():
    """DDP and the rank's state refer to the buffers; rows that were read stay, and no checkpoint holds the queue."""
    queue = TextQueue(3, 2)
    before, read = dict(queue.named_buffers()), queue.read()
    assert before.keys() == {"embeddings", "image_ids"} and queue.state_dict() == {} and not list(queue.parameters())
    new = torch.tensor([[1.0, -1], [2, -2]]).bfloat16().requires_grad_()
    queue.push(new, torch.tensor([1, 1]))
    assert all(buffer is before[name] for name, buffer in queue.named_buffers())
    assert not queue.embeddings.requires_grad and queue.embeddings.dtype == torch.float32
    new.data += 1
    assert contents(queue) == [(1, 1), (2, 1)] and len(read[1]) == 0


# ---- two processes


def main(output):
    rank, found = comm.get_rank(), {}
    for name, counts in {"equal": (3, 3), "unequal": (1, 4)}.items():
        inputs, captions = pairs(sum(counts), seed=1)
        share = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        found[name] = loss_and_gradients(inputs[share], captions[share])
        found[name + "_gathered"] = gather_rows(inputs[share]), gather_rows(LARGE + torch.arange(sum(counts))[share])
    torch.save(found, Path(output) / f"rank{rank}.pth")
    comm.synchronize()
    leave_group()


def test_two_processes_equal_one_with_equal_and_unequal_numbers_of_pairs(tmp_path):
    """The losses and gradients are the means of the processes'."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=False) for rank in range(2)]
    alone = loss_and_gradients(*pairs(6, seed=1))
    for one, *both in zip(alone, *(rank["equal"] for rank in ranks), strict=True):
        torch.testing.assert_close(sum(both) / 2, one)
    assert not torch.allclose(ranks[0]["equal"][1], alone[1])  # a process alone has only a part

    inputs, captions = pairs(5, seed=1)
    for rank, start in ((0, 0), (1, 1)):
        for whole, (gathered, begin) in zip(
            (inputs, LARGE + torch.arange(5)), ranks[rank]["unequal_gathered"], strict=True
        ):
            assert torch.equal(gathered, whole) and begin == start
    assert gather_rows(inputs) == (inputs, 0)  # one process has only its own rows
    weight = start_weight()
    images = normalize(inputs @ weight, dim=-1)
    shares = [
        symmetric_info_nce(images[a:b], captions[a:b], images, captions, scale=20.0, start=a)
        for a, b in ((0, 1), (1, 5))
    ]
    mean = sum(shares) / 2
    mean.backward()
    torch.testing.assert_close(sum(rank["unequal"][0] for rank in ranks) / 2, mean.detach())
    torch.testing.assert_close(sum(rank["unequal"][1] for rank in ranks) / 2, weight.grad)


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
