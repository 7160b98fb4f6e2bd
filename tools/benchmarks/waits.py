"""Where a joint training step waits: its host for the device, and its process for others.

    python tools/benchmark.py --only waits
    PYTHONPATH=tools python -m benchmarks.waits configs/mini/detic_clim.yaml configs/mini/baron_clim.yaml

No GPU is needed: the tensors are on the CPU, and those count as the device's that come from the model, or that are
moved or made there by the device of another tensor. Exchanges are those of two processes (Gloo), without DDP's own.
"""

import pickle
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from unittest import mock

import torch
import torchvision
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clim.engine import Trainer, load_config
from clim.files import read_json, write_json

from .inputs import Settings
from .steps import STEPS, new_trainer, register, step_config

COUNTED = 4  # steps of two processes; before them, and before the step of one process, is another one: queues fill
WAITING = "_local_scalar_dense nonzero masked_select _unique2 unique_consecutive bincount equal nms".split()
MASKED = "index index_put index_put_ _index_put_impl_".split()  # by a mask: waits for the number of its rows
BACK = "cpu tolist numpy".split()
HOST = torch.device("cpu", 0)  # stands for the device of the host's tensors
EXCHANGES = {
    "pickled exchange": "all_gather_object gather_object broadcast_object_list".split(),
    "exchange of a tensor": "all_gather all_reduce reduce gather broadcast all_to_all reduce_scatter".split(),
}


def place() -> str:
    """file:line of the innermost frame in CLIM or Detectron2, without the functions that all exchanges go through."""
    frame, found = sys._getframe(1), None
    while frame and not (found and found[2] not in ("utils/comm.py", "processes.py", "errors.py")):
        found = re.search(r"/(clim|detectron2)/((?!.*/\1/).*)", frame.f_code.co_filename)
        line, frame = frame.f_lineno, frame.f_back
    return f"{found[1]}/{found[2]}:{line}" if found else "elsewhere"


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Waits(TorchDispatchMode):
    """``counts``: {place: operations in the block for whose result a GPU's host waits}."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.counts: Counter = Counter()
        self.on_device = {storage(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name.partition("::")[2]
        here = any(storage(x) in self.on_device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        number = sum(x.dtype == torch.bool for x in args[1] if x is not None) if name in MASKED else name in WAITING
        if here and (number or unsized):
            self.counts[place()] += number or 1
        found = function(*args, **kwargs)
        self.mark(found, here)
        return found

    def mark(self, found, here: bool) -> None:
        """Say where the tensors of ``found`` are, also if on the host: their storage may be that of a freed tensor."""
        for tensor in (x for x in tree_leaves(found) if isinstance(x, Tensor)):
            (self.on_device.add if here else self.on_device.discard)(storage(tensor))


class Moves(TorchFunctionMode):
    """Follows tensors for ``waits`` where the program moves or makes them."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name, waits = kwargs or {}, getattr(function, "__name__", ""), self.waits
        if name == "one_hot":  # only on the CPU it looks at the classes
            with mock.patch.object(waits, "counts", Counter()):
                return function(*args, **kwargs)
        if function == torch.Tensor.device.__get__ and storage(args[0]) not in waits.on_device:
            return HOST
        places = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device | str)]
        there = bool(places) and places[0] not in (HOST, "cpu")
        back = name in BACK or (name == "to" and bool(places) and not there)
        waits.counts[place()] += int(back and storage(args[0]) in waits.on_device)
        found = function(*args, **kwargs)
        if back or (name == "to" and there):
            found = found.clone() if isinstance(found, Tensor) else found  # on the CPU alone it is the same tensor
            waits.mark(found, not back)
        elif "device" in kwargs or not any(isinstance(x, Tensor) for x in tree_leaves((args, kwargs))):
            waits.mark(found, there)
        return found


def host_waits(trainer: Trainer) -> Counter:
    """{place: waits of one step}."""
    batch, boxes, waits = next(trainer.loader), torchvision.ops.boxes, Waits(trainer.raw_model)
    trainer.loader = iter([batch])
    # On the CPU alone, many boxes go through NMS class by class.
    gpu_nms = mock.patch.object(boxes, "_batched_nms_vanilla", boxes._batched_nms_coordinate_trick)
    with gpu_nms, waits, Moves(waits):
        trainer.run_step()
    return +waits.counts


def exchanges(trainer: Trainer) -> list[tuple[str, str, tuple[int, float]]]:
    """kind, place, (bytes that this process sends, CPU ms) of each exchange in COUNTED steps."""
    found: list = []

    def counted(kind, call, *args, **kwargs):
        sent = next(x for x in args if not isinstance(x, list))
        start = time.process_time()
        result = call(*args, **kwargs)
        seconds = time.process_time() - start
        size = sent.nbytes if isinstance(sent, Tensor) else len(pickle.dumps(sent))
        found.append((kind, place(), (size, 1000 * seconds)))
        return result

    with ExitStack() as patches:
        for kind, names in EXCHANGES.items():
            for name in names:
                call = partial(counted, kind, getattr(torch.distributed, name))
                patches.enter_context(mock.patch.object(torch.distributed, name, call))
        for _ in range(COUNTED):
            trainer.run_step()
    return found


def after_a_step(measure, cfg, records: Sequence[dict] | None):
    """``measure`` of a trainer of ``cfg``, whose data set is "benchmark" where there are ``records``."""
    torch.set_num_threads(1)
    if records:
        register(records)
    trainer = new_trainer(cfg) if records else Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.iter = 0
    with EventStorage() as trainer.storage:
        trainer.run_step()
        return measure(trainer)


def one_of_two(cfg, records: Sequence[dict] | None, path: str) -> None:
    found = after_a_step(exchanges, cfg, records)
    if comm.is_main_process():
        write_json(path, found)


def waits_of(cfg, records: Sequence[dict] | None = None) -> list[dict]:
    """Rows for a step of ``cfg``: host waits by place, Detectron2's as one; exchanges by kind and place."""
    waits = after_a_step(host_waits, cfg, records)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/exchanges.json"
        launch(one_of_two, 2, dist_url="auto", args=(cfg, records, path))
        found = read_json(path, remedy="measure again", kind=list)
    ours = {where: number for where, number in sorted(waits.items()) if where.startswith("clim/")}
    total = {"all of CLIM": sum(ours.values()), "all of Detectron2": waits.total() - sum(ours.values())}
    rows = [("host wait", where, number, "", "") for where, number in (ours | total).items()]
    for key in sorted({(kind, where) for kind, where, _ in found}):
        sizes, ms = zip(*(numbers for *other, numbers in found if tuple(other) == key), strict=True)
        rows.append((*key, len(sizes) / COUNTED, sum(sizes) // COUNTED, round(sum(ms) / COUNTED, 2)))
    return [dict(zip(("what", "where", "a step", "bytes", "CPU ms"), row, strict=True)) for row in rows]


def measure_waits(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Where a step waits: the host for a GPU, and two processes for each other.

    The step is that of 2 + 2 + 2 images in tools/benchmark.py.
    """
    return waits_of(step_config(settings, STEPS["CLIM 2+2+2"]), records)


if __name__ == "__main__":
    for config in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as output:
            values = {"OUTPUT_DIR": output, "MODEL.WEIGHTS": "", "DATASETS.TEST": (), "DATALOADER.NUM_WORKERS": 0}
            cfg = load_config(config, [word for pair in values.items() for word in pair])
            print(f"{config}\n\n{tabulate(waits_of(cfg), headers='keys', tablefmt='github')}\n")
