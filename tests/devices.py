"""A GPU that is not there: tensors with real numbers on the CPU, which claim to be on "cuda:0" and keep its rules.

Inside :func:`pretended_gpu`, what is made on or moved to "cuda" is a :class:`OnGPU`. As on a GPU, an operation refuses
tensors of two devices, a generator of the CPU, and NumPy. Backward passes are not checked, as their forward passes
were. Kernels, memory, streams and speed are those of the CPU.
"""

from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda:0")
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class OnGPU(Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_cuda, is_cpu = (property(lambda self, value=value: value) for value in (GPU, True, False))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if torch._C._current_graph_task_id() < 0:  # no backward pass
            _check(func, args, kwargs or {})
        with torch._C._DisableTorchDispatch():
            return tree_map_only(Tensor, _claim, func(*args, **kwargs or {}))

    def to(self, *args, **kwargs):
        return _to(self, *args, **kwargs)

    def cpu(self):
        return _to(self, "cpu")

    def new_tensor(self, data, **kwargs):  # torch makes it without an operation on self
        return _to(torch.tensor(data, **{"dtype": self.dtype} | kwargs), GPU)

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *_, force=False, **__):
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    __array__ = numpy

    def __reduce_ex__(self, protocol):
        return self.detach().cpu().__reduce_ex__(protocol)


def _claim(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, OnGPU) else Tensor._make_subclass(OnGPU, tensor)


def _moved(tensor: Tensor) -> Tensor:
    """A copy on the other device, without a graph."""
    with torch._C._DisableTorchDispatch():
        copy = tensor.detach().clone()
    return copy if isinstance(tensor, OnGPU) else _claim(copy)


def _to(tensor: Tensor, *args, copy=False, **kwargs) -> Tensor:
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and (device.type == "cuda") != isinstance(tensor, OnGPU):
        tensor = _moved(tensor)
    return Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=copy, memory_format=memory_format)


def _check(func, args, kwargs) -> None:
    """RuntimeError where CUDA refuses ``func``."""
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
    name, checked = func._schema.name, (args, kwargs)
    if name in INDEXING and isinstance(args[0], OnGPU):
        checked = args[2:3]  # the new values; indices may be on the CPU
    scalars_are_fine = torch.Tag.pointwise in func.tags or name in INDEXING
    others = [t for t in tree_leaves(checked) if isinstance(t, Tensor) and not isinstance(t, OnGPU)]
    if name != "aten::copy_" and any(t.dim() > 0 or not scalars_are_fine for t in others):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu!")


class _MadeInside(TorchDispatchMode):
    """What an operation on the GPU makes for itself, as ``one_hot`` an ``arange``, is on the GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        made = not any(isinstance(of, Tensor) for of in tree_leaves((args, kwargs)))
        return tree_map_only(Tensor, _claim, out) if made else out


class _Devices(TorchFunctionMode):
    """Knows "cuda" where tensors are made or moved."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (Tensor.to, Tensor.pin_memory):
            return _to(*args, **kwargs) if func is Tensor.to else args[0]
        device = kwargs.get("device")
        if device is None or func is torch._C._nn._parse_to:
            on_gpu = any(isinstance(of, OnGPU) for of in tree_leaves((args, kwargs)))
            with _MadeInside() if on_gpu else nullcontext():
                return func(*args, **kwargs)
        if torch.device(device).type != "cuda":
            return _to(func(*args, **kwargs), device)
        if kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return _to(func(*args, **kwargs | {"device": "cpu"}), GPU)


@contextmanager
def pretended_gpu():
    """In this block "cuda" is a device."""
    replace = torch.__future__.set_overwrite_module_params_on_conversion

    def on_gpu(function):
        """``function`` for the device type "cuda" alone, carried out by the CPU."""
        return lambda kind, *args, **kwargs: function({"cuda": "cpu"}[kind], *args, **kwargs)

    with (
        patch.object(torch, "autocast", on_gpu(torch.autocast)),
        patch.object(torch, "is_autocast_enabled", lambda *_, enabled=torch.is_autocast_enabled: enabled("cpu")),
        patch.object(torch.amp, "GradScaler", on_gpu(torch.amp.GradScaler)),
        patch.object(torch.cuda, "device_count", lambda: 1),
        _Devices(),
    ):
        replace(True)  # Module.to would keep the class of its parameters
        try:
            yield
        finally:
            replace(False)
