"""More rows for a contrast than one batch holds: a queue of past embeddings, and the rows of all processes."""

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather


class TextQueue(nn.Module):
    """The newest ``length`` embeddings with their image ids, newest first; id -1 marks an empty place.

    Each process has its own (CLIM release). The buffers are not persistent, so that a checkpoint holds the model
    alone; resuming restores them from the rank's state (engine/rank_state.py).
    """

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(length, dim), persistent=False)
        self.register_buffer("image_ids", torch.full((length,), -1), persistent=False)

    def read(self) -> tuple[Tensor, Tensor]:
        """Embeddings (Q, D) and image ids (Q,) of what is stored, Q <= length."""
        filled = self.image_ids >= 0
        return self.embeddings[filled], self.image_ids[filled]

    @torch.no_grad()
    def push(self, embeddings: Tensor, image_ids: Tensor) -> None:
        """Put (N, D) embeddings in front; the oldest fall out. In place, so that DDP keeps its buffers."""
        length = len(self.image_ids)
        self.embeddings.copy_(torch.cat([embeddings.detach().float(), self.embeddings])[:length])
        self.image_ids.copy_(torch.cat([image_ids, self.image_ids])[:length])


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows (R_i, D) of all processes in rank order, (N, D), and the index of this process's first row.

    Processes may have different numbers of rows. The gradient of a process's own rows is summed over the losses of all
    processes. Averaged over processes, as DistributedDataParallel does, that is the gradient of the mean loss
    (open_clip's ``gather_with_grad``).
    """
    if comm.get_world_size() == 1:
        return rows, 0
    counts = comm.all_gather(len(rows))
    padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), rows.shape[1])])
    parts = all_gather(padded)
    gathered = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return gathered, sum(counts[: comm.get_rank()])
