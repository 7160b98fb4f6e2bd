"""More rows for a contrast: a queue of past embeddings, and the rows of all processes."""

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from clim.processes import gather_numbers


class TextQueue(nn.Module):
    """The newest ``length`` embeddings with their image ids, newest first; id -1 marks an empty place.

    Each process has its own queue (CLIM release). It is not in checkpoints but in the rank's state (engine/resume.py).
    """

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(length, dim), persistent=False)
        self.register_buffer("image_ids", torch.full((length,), -1), persistent=False)

    def read(self) -> tuple[Tensor, Tensor]:
        """The Q <= length stored embeddings (Q, D) and their image ids (Q,)."""
        stored = (self.image_ids >= 0).nonzero()[:, 0]
        return self.embeddings[stored], self.image_ids[stored]

    def with_stored(self, embeddings: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The given embeddings (N, D) and image ids (N,), each followed by the stored ones."""
        stored, stored_ids = self.read()
        return torch.cat([embeddings, stored]), torch.cat([image_ids, stored_ids])

    @torch.no_grad()
    def push(self, embeddings: Tensor, image_ids: Tensor) -> None:
        """Store (N, D) embeddings and drop the oldest. Changes the buffers in place, as DDP refers to them."""
        length = len(self.image_ids)
        self.embeddings.copy_(torch.cat([embeddings.detach().float(), self.embeddings])[:length])
        self.image_ids.copy_(torch.cat([image_ids, self.image_ids])[:length])


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows (R_i, …) of all processes in rank order, (N, …), and the index of this process's first row.

    Processes may have different numbers of rows. The gradient of a row is the sum over the losses of all processes;
    DDP divides it by their number, which gives the gradient of the mean loss (open_clip's ``gather_with_grad``).
    """
    if comm.get_world_size() == 1:
        return rows, 0
    counts = [int(count) for (count,) in gather_numbers(len(rows))]
    padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
    parts = zip(all_gather(padded), counts, strict=True)
    return torch.cat([part[:count] for part, count in parts]), sum(counts[: comm.get_rank()])
