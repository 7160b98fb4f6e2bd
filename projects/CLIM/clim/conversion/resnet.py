"""ResNet-50 as torchvision names it, and with it maskrcnn-benchmark and MMDetection; ours is Detectron2's."""

from collections.abc import Callable

from torch import Tensor

from .kind import Row, Table

BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}  # bottlenecks of layer1 (Detectron2's res2) … layer4 (res5)
STATISTICS = ("weight", "bias", "running_mean", "running_var")


def stem(official: str, ours: str, *, change_var: Callable[[Tensor], Tensor] = Tensor.clone) -> Table:
    """The first convolution. ``official`` and ``ours`` are prefixes, with their dots.

    ``change_var``: of the running variances, for layers that use them in another way.
    """
    return _layer(f"{official}conv1", f"{official}bn1", f"{ours}conv1", change_var)


def stage(
    number: int, official: str, ours: str, *, change_var: Callable[[Tensor], Tensor] = Tensor.clone
) -> Table:
    """``layer{number}``: all of its bottlenecks. Prefixes and ``change_var`` as in :func:`stem`."""
    table = _layer(f"{official}0.downsample.0", f"{official}0.downsample.1", f"{ours}0.shortcut", change_var)
    for block in range(BLOCKS[number]):
        for k in (1, 2, 3):
            names = (f"{official}{block}.conv{k}", f"{official}{block}.bn{k}", f"{ours}{block}.conv{k}")
            table |= _layer(*names, change_var)
    return table


def _layer(conv: str, norm: str, ours: str, change_var: Callable[[Tensor], Tensor]) -> Table:
    statistics = {f"{norm}.{name}": Row(f"{ours}.norm.{name}") for name in STATISTICS}
    variance = {f"{norm}.running_var": Row(f"{ours}.norm.running_var", change_var)}
    return {f"{conv}.weight": Row(f"{ours}.weight")} | statistics | variance
