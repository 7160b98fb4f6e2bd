"""Which samples an iteration holds: infinite, shuffled, split over ranks, and a pure function of the iteration.

Nothing needs to be stored to resume: a stream started at iteration i continues exactly as it would have.
"""

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np

Draw = tuple[int, int]  # (epoch, index)
Key = tuple[str, int, int]  # (source, epoch, index)


def draws(length: int, *, seed: int, stream: int, rank: int = 0, world: int = 1) -> Iterator[Draw]:
    """Every index once an epoch, reshuffled each epoch; the ranks take turns."""
    offset = rank  # position inside the coming epoch of this rank's next draw
    for epoch in count():
        order = np.random.default_rng([seed, stream, epoch]).permutation(length)
        yield from ((epoch, int(i)) for i in order[offset::world])
        offset = (offset - length) % world


def batches(drawn: Iterator[Draw], size: int, *, landscape: Sequence[bool] | None = None) -> Iterator[list[Draw]]:
    """Groups of ``size`` draws; with ``landscape`` (N,) each of pictures lying the same way, to pad less."""
    buckets: dict[bool, list[Draw]] = {False: [], True: []}
    for draw in drawn:
        bucket = buckets[bool(landscape[draw[1]]) if landscape is not None else False]
        bucket.append(draw)
        if len(bucket) == size:
            yield list(bucket)
            bucket.clear()


def joint_batches(sources: dict[str, Iterator[list[Draw]]], *, start: int = 0) -> Iterator[list[Key]]:
    """One batch of every source in every iteration (CLIM), from iteration ``start`` on."""
    while True:
        keys = [(name, *draw) for name, stream in sources.items() for draw in next(stream)]
        if start > 0:
            start -= 1
        else:
            yield keys


def alternating_batches(
    sources: dict[str, Iterator[list[Draw]]], *, weights: Sequence[float], seed: int, start: int = 0
) -> Iterator[list[Key]]:
    """One batch of *one* source in every iteration (official Detic), all ranks the same one."""
    names, p = list(sources), np.asarray(weights, dtype=float)
    rng = np.random.default_rng([seed, len(names)])

    def stream():
        while True:
            name = names[rng.choice(len(names), p=p / p.sum())]
            yield [(name, *draw) for draw in next(sources[name])]

    return islice(stream(), start, None)
