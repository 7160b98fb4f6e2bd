"""Read the weights of a TorchScript archive, such as OpenAI's CLIP, without running its code.

In its zip ``data.pkl`` pickles the tree of modules, ``data/N`` are storages of tensors, and ``code/`` holds the classes
as text, which is only searched for the names of their parameters and buffers.
"""

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from io import BytesIO

import torch
from torch import Tensor

_DTYPES = {"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
           "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
           "Bool": torch.bool}  # fmt: skip
_PARTS = {
    "torch._utils._rebuild_tensor_v2": lambda storage, start, size, stride, *_: storage.as_strided(size, stride, start),
    "torch.jit._pickle.restore_type_tag": lambda value, _: value, "collections.OrderedDict": OrderedDict,
    **{f"torch.jit._pickle.build_{kind}list": lambda values: values for kind in ("int", "double", "bool", "tensor")},
    **{f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()}, "torch.device": lambda *name: name,
}  # fmt: skip


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether a file is a TorchScript program, and not a pickle of tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: str | os.PathLike) -> dict[str, Tensor]:
    """The ``state_dict()`` of what ``torch.jit.load`` makes of a file, on the CPU: {path of attributes: tensor}.

    UnpicklingError where it holds more than modules, tensors and plain values, or a module that only code restores.
    """
    with zipfile.ZipFile(path) as archive:
        (root,) = (name.removesuffix("data.pkl") for name in archive.namelist() if re.fullmatch("[^/]*/data.pkl", name))
        return dict(_weights(_Unpickler(archive, root).load()))


class _Object:
    """Stands for an object of a class in the archive. ``declared``: names of its weights; None: all its tensors."""

    declared: set[str] | None

    def __setstate__(self, attributes):
        if not isinstance(attributes, dict):
            raise pickle.UnpicklingError(f"{type(self).__name__} can only be restored by code")
        self.attributes = attributes


def _weights(module: _Object, prefix: str = ""):
    for name, value in module.attributes.items():
        if isinstance(value, Tensor) and (module.declared is None or name in module.declared):
            yield prefix + name, value
    for name, value in module.attributes.items():
        if isinstance(value, _Object):
            yield from _weights(value, f"{prefix}{name}.")


class _Unpickler(pickle._Unpickler):  # Python's own: twenty bytes make the one in C reserve gigabytes
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root, self._storages = archive, root, {}

    def find_class(self, module, name):
        if module.partition(".")[0] != "__torch__":
            if (part := _PARTS.get(f"{module}.{name}")) is None:
                raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of weights")
            return part
        code = self._archive.read(f"{self._root}code/{module.replace('.', '/')}.py").decode()
        lists = r"\n(  __parameters__ = .*\n)?(  __buffers__ = .*\n)?"
        found = re.search(rf"^class {re.escape(name)}\(Module\):{lists}", code, re.MULTILINE)
        declared = set(re.findall(r'"(.*?)"', "".join(filter(None, found.groups())))) if found else set()
        older = found and not found[2]  # some versions of torch declare no buffers
        return type(name, (_Object,), {"declared": None if older else declared, "attributes": {}})

    def persistent_load(self, identity):
        _, dtype, key, _, length = identity
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            if len(data) != length * dtype.itemsize:
                raise ValueError(f"data/{key} has {len(data)} bytes, but its tensors need {length} of {dtype}")
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]
