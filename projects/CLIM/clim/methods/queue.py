"""A memory of past text embeddings, for more negatives than one batch holds."""

import torch
from torch import Tensor, nn


class TextQueue(nn.Module):
    """The newest ``length`` embeddings with their image ids, newest first; id -1 marks an empty place.

    Non-persistent buffers: a checkpoint of the model stays a checkpoint of the model. Resuming restores them
    from the rank's own state (engine/resume.py). Each process has its own (CLIM release).
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
