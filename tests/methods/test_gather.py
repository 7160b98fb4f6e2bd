"""Rows of all processes: their order, their numbers, and the gradient of each process's own."""

import torch
from torch.nn.functional import normalize

from clim.losses import symmetric_info_nce
from clim.methods.gather import gather_rows


def test_one_process_has_its_own_rows_alone():
    rows = torch.randn(3, 4, requires_grad=True)
    gathered = gather_rows(rows)
    assert gathered.rows is rows and gathered.start == 0


def test_processes_may_hold_different_numbers_of_pairs(ranks, clip_ranks):
    inputs, captions = clip_ranks.pairs(5, seed=1)
    for rank, start in ((0, 0), (1, 1)):
        rows, begin = ranks[rank]["unequal_gathered"]
        assert torch.equal(rows, inputs) and begin == start
    weight = torch.linspace(-1, 1, clip_ranks.WIDTH * clip_ranks.DIM).sin().view(clip_ranks.WIDTH, -1)
    weight.requires_grad_()
    images = normalize(inputs @ weight, dim=-1)
    own = [
        symmetric_info_nce(images[a:b], captions[a:b], images, captions, scale=20.0, start=a)
        for a, b in ((0, 1), (1, 5))
    ]
    mean = sum(own) / 2
    mean.backward()
    torch.testing.assert_close(sum(rank["unequal"][0] for rank in ranks) / 2, mean.detach())
    torch.testing.assert_close(sum(rank["unequal"][1] for rank in ranks) / 2, weight.grad)
