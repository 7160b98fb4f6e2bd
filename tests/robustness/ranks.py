"""Trainings of two processes: other or damaged files, or an accident, of the second one alone."""

import io
import os
import shutil
import signal
import socket
import sys

import numpy as np
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead

from clim.errors import UserError, run_cleanly
from clim.modeling.open_vocab_rcnn import OpenVocabRCNN

from .damage import a_file, edited
from .entries import CACHE, train
from .runner import Case, Entry, cases, ends
from .weights import FINAL, NAN, changed, npy, one

OTHER = "Another process of this program ended or cannot be reached"


def rpn(forward, *inputs):
    logits, deltas = forward(*inputs)
    return [value * NAN for value in logits], deltas


def loss(forward, *inputs):
    losses = forward(*inputs)
    return losses | {"loss_cls": losses["loss_cls"] * NAN}


def mistake(*_):
    raise UserError("noun 7 has no row")


def memory(*_):
    raise RuntimeError("CUDA out of memory")


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


ACCIDENTS = {  # of the second process; the sentence that tells it
    rpn: (StandardRPNHead, "{'process 1': {'detection'"), loss: (OpenVocabRCNN, "loss_cls = nan"),
    mistake: (OpenVocabRCNN, "noun 7"), memory: (OpenVocabRCNN, "not enough memory"), killed: (OpenVocabRCNN, OTHER),
}  # fmt: skip


def two(world, accident=None, *opts: str) -> list:
    """Losses of two processes; the second one has ``opts``, the data of "other" and, from its second step, an accident.

    Its sentence is told, else that of the first one, as torchrun shows both.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in (0, 1):
        if not (child := os.fork()):
            names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
            os.environ |= dict(zip(names, (str(rank), str(rank), "2", "2", "127.0.0.1", port), strict=True))
            if rank:
                for number in (1, 2):
                    os.dup2(os.open("second", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
                os.environ["DETECTRON2_DATASETS"] = str(world / ("other" if (world / "other").is_dir() else "datasets"))
                _meet(accident)
            else:
                os.dup2(os.open("first", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            code = 1
            try:
                run_cleanly(train, world, "SOLVER.MAX_ITER", "3", "DISTRIBUTED.TIMEOUT", "15", *(opts if rank else ()))
                code = 0
            except SystemExit as error:
                code = error.code
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    first, second = (open(name).read() for name in ("first", "second"))
    print(first.replace("error:", "first:"), second.replace("error:", "second:"))
    if any(codes):
        told = [line for text in (second, first) for line in text.splitlines() if line.startswith("error:")]
        sys.stderr.write(f"{told[0]}\n")
        sys.exit(max(codes))
    return open("out/metrics.json").read().splitlines()


def _meet(accident) -> None:
    if accident is None:
        return
    owner, calls = ACCIDENTS[accident][0], []
    forward = owner.forward

    def changed_forward(*inputs):
        calls.append(1)
        return accident(forward, *inputs) if len(calls) > 2 else forward(*inputs)

    owner.forward = changed_forward


def elsewhere(damage):
    """``damage`` of the second process's own copy of the data."""
    return lambda world: (shutil.copytree(world / "datasets", world / "other"), damage(world)) and None


def all_files(pattern: str, data: bytes):
    """Other bytes in all files of a pattern."""
    return lambda world: [(file.unlink(), file.write_bytes(data)) for file in list(world.glob(pattern))] and None


TWO = Entry("two processes", two, seconds=60, out=("out", "first", "second", "other", CACHE))
ROWS, BOXES = "other/mini/metadata/classes_minilm.npy", "other/mini/annotations/instances_train_base.json"
TEXTS = "other/mini/metadata/captions_minilm"
TOLD = {  # (damage of the second process's data, words)
    "half a json": (edited(BOXES, lambda data: data[: len(data) // 2]), "instances_train_base.json"),
    "nan embeddings": (edited(ROWS, lambda data: npy(np.load(io.BytesIO(data)) * NAN)), "classes_minilm.npy"),
    "no images": (lambda world: shutil.rmtree(world / "other/mini/train"), "mini/train"),
    "empty images": (all_files("other/mini/train/*", b""), "mini/train"),
    "no pairs": (all_files("other/mini/pairs/*", b"noise"), "mini/pairs"),
    "a file as cache": (a_file(TEXTS), "captions_minilm"),
}
SETTINGS = {  # of the second process alone
    "SOLVER.MAX_ITER": ("2", "number of iterations"), "DATALOADER.MOSAICS_PER_GPU": ("2", "batch sizes"),
    "MODEL.WEIGHTS": (FINAL, "weights"), "SOLVER.WARMUP_ITERS": ("-1", "SOLVER.WARMUP_ITERS"),
}  # fmt: skip
CASES = [
    *(Case("ranks", f"{accident.__name__} of one", TWO, told=(words,), changed=TWO.given(accident))
      for accident, (_, words) in ACCIDENTS.items()),
    *(Case("ranks", f"{name} of one", TWO, elsewhere(damage), (word,)) for name, (damage, word) in TOLD.items()),
    *(Case("ranks", f"{key} {value} of one", TWO, told=(word,), changed=TWO.given(None, key, value))
      for key, (value, word) in SETTINGS.items()),
    *cases("ranks", TWO.given(None, "MODEL.WEIGHTS", FINAL, name="two processes, one with weights"),
           changed(FINAL, {"nan": one(NAN)}), "model_final.pth"),
    *cases("ranks", TWO, {"no cache of one": elsewhere(lambda world: shutil.rmtree(world / TEXTS))}, handled=ends),
    *cases("ranks", TWO, {f"noise as {kind} of the cache": all_files(f"{CACHE}/**/*.{kind}", b"noise" * 99)
                          for kind in ("rows", "entries", "json")}, handled=ends),
]  # fmt: skip
