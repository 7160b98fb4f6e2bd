"""What changes in a tensor between an official project and ours: pure functions of one tensor."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5  # of Detectron2's frozen batch normalisation
SIZES, RATIOS = 5, 3  # anchors of a C4 detector: 32 … 512 px, height / width .5, 1, 2


def without_eps(running_var: Tensor) -> Tensor:
    """For x / sqrt(var), where the official layer adds nothing to the variance and Detectron2's adds EPS."""
    return running_var - EPS


def as_scalar(value: Tensor) -> Tensor:
    """(1,) or () → ()."""
    return value.reshape(()).clone()


def sizes_first(values: int) -> Callable[[Tensor], Tensor]:
    """Rows (A · ``values``, …) of an RPN's 1 x 1 convolution, from anchors by ratio, then size (maskrcnn-benchmark)
    to anchors by size, then ratio (Detectron2). ``values``: 1 for objectness, 4 for deltas."""

    def change(rows: Tensor) -> Tensor:
        blocks = rows.reshape(RATIOS, SIZES, values, *rows.shape[1:])
        return blocks.transpose(0, 1).reshape(rows.shape)

    return change


def foreground_box(rows: Tensor) -> Tensor:
    """(8, …) → (4, …): of two "classes" of boxes, background and object, the object's."""
    return rows.reshape(2, 4, *rows.shape[1:])[1].clone()


def text_matrix(class_embeddings: Tensor) -> Tensor:
    """(K, D) → (D, K + 1): unit columns, and zeros for the background, as our classifiers store them."""
    columns = F.normalize(class_embeddings.float(), dim=1).T
    return torch.cat([columns, columns.new_zeros(len(columns), 1)], dim=1)
