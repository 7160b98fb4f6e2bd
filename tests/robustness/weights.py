"""Files of weights, embeddings, caches, and the state of a run that is resumed."""

import io
import json
import pickle
import zipfile

import numpy as np
import torch

from .damage import BYTES, PLACES, broken, contents, edited, edits, entry, flipped, put
from .entries import BERT, CACHE, CACHED, CLIP, DETECTOR, EVAL, PREDICT, RESUME, SAFE, TRAIN
from .runner import MARKER, Case, cases, close, ends, same

FINAL, STEP, RANK = "run/model_final.pth", "run/model_0000000.pth", "run/rank_states/iteration_0000000.rank0.pth"
CLASSES, NAMES = "datasets/mini/metadata/classes_minilm.npy", "datasets/mini/metadata/classes_minilm.names.json"
NAN = float("nan")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, world):
        self.code = f"open({str(world / MARKER)!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.code,)


def saved(content) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def changed(file: str, changes: dict) -> dict:
    """Other contents of a file of torch.save: each change gets the content, and may give another one."""

    def change(function):
        def edit(data: bytes) -> bytes:
            other = function(content := torch.load(io.BytesIO(data), weights_only=False))
            return saved(content if other is None else other)

        return edit

    return edits(file, {name: change(function) for name, function in changes.items()})


def head(data: dict) -> str:
    """A weight of the box head, else of a model without one."""
    names = [name for name, value in data["model"].items() if value.is_floating_point() and value.numel() > 3]
    return next((name for name in names if "bbox_pred" in name), names[0])


def one(value):
    """A number of the head's first weight becomes ``value``."""

    def change(data):
        weight = data["model"][head(data)]
        weight.put_(torch.tensor([3]), torch.tensor([value], dtype=weight.dtype))

    return change


def every(function):
    """``function`` of each floating tensor."""
    return lambda data: (
        data | {"model": {k: function(v) if v.is_floating_point() else v for k, v in data["model"].items()}}
    )


def assign(**values):
    return lambda data: data | values


def moments(function):
    """``function`` of each first moment of the optimiser."""

    def change(data):
        for of_weight in data["optimizer"]["state"].values():
            of_weight["exp_avg"] = function(of_weight["exp_avg"])

    return change


def described(**values):
    return lambda data: data | {"clim": data["clim"] | values}


def lacking(*keys):
    return lambda data: {k: v for k, v in data.items() if k not in keys}


def stored_bits(file: str, seeds: int) -> dict:
    """Bits of a stored tensor are flipped: its checksum in the zip is wrong."""

    def change(seed: int):
        def edit(data: bytes) -> bytes:
            info = max(zipfile.ZipFile(io.BytesIO(data)).infolist(), key=lambda info: info.file_size)
            start, end = info.header_offset + 200, info.header_offset + info.file_size
            return data[:start] + flipped(seed)(data[start:end]) + data[end:]

        return edit

    return edits(file, {f"bits of a tensor {seed}": change(seed) for seed in range(seeds)})


WRONG = {
    "nan": one(NAN), "inf": one(float("inf")), "all nan": every(lambda v: v * NAN), "no model": lacking("model"),
    "model a list": assign(model=[1]), "a list": lambda data: [1, 2], "a number": lambda data: 5,
    "empty model": assign(model={}),
    "names that are numbers": assign(model={1: torch.zeros(2)}), "other shapes": every(lambda v: v.reshape(-1)[:1]),
    "a weight is text": lambda data: data["model"].update({head(data): "text"}),
    "half of the weights": lambda data: data | {"model": dict(list(data["model"].items())[::2])},
    "a sparse weight": lambda data: data["model"].update({head(data): torch.zeros(4, 4).to_sparse()}),
    "other names": lambda data: data | {"model": {f"x.{k}": v for k, v in data["model"].items()}},
}  # fmt: skip
DESCRIBED = {
    "no description": lacking("clim"), "a text": assign(clim="x"), "no config": assign(clim={"class_names": ["dog"]}),
    "config a number": described(config=5), "an unknown key": described(config="MODEL:\n  DEVCIE: cpu\n"),
    "code": described(config="SEED: !!python/object/apply:os.system ['touch code_has_run']"),
    "names null": described(class_names=None),
    "names of numbers": described(class_names=[1, 2]), "fewer names": described(class_names=["dog"]),
    "rows a text": described(rows="x"),
    "rows another number": described(rows=3), "names twice": described(class_names=["dog"] * 65),
}  # fmt: skip
STATE = {
    "no optimizer": lacking("optimizer"), "no scheduler": lacking("scheduler"), "no iteration": lacking("iteration"),
    "iteration a text": assign(iteration="x"), "iteration negative": assign(iteration=-5),
    "iteration nan": assign(iteration=NAN),
    "optimizer a list": assign(optimizer=[1]), "optimizer empty": assign(optimizer={}),
    "scheduler empty": assign(scheduler={}),
    "optimizer null": assign(optimizer=None), "no groups": lambda data: data["optimizer"].update(param_groups=[]),
    "optimizer without its state": lambda data: data["optimizer"].update(state={}),
    "nan in the optimizer": moments(lambda moment: moment * NAN),
    "other shapes in it": moments(lambda moment: torch.zeros(3)),
}  # fmt: skip
RANKS = {
    "no python": lacking("python"), "no torch": lacking("torch"),
    "torch of another size": assign(torch=torch.zeros(3, dtype=torch.uint8)),
    "queues null": assign(queues=None), "world_size a text": assign(world_size="x"), "numpy null": assign(numpy=None),
    "a list": lambda data: [1],
    "nan": lambda data: [q.fill_(NAN) for q in data["queues"].values() if q.is_floating_point()] and None,
}  # fmt: skip
ARRAYS = {
    "nan": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, np.nan, a), "inf": lambda a: a + np.inf,
    "zeros": lambda a: a * 0, "a row less": lambda a: a[1:], "a column less": lambda a: a[:, 1:],
    "one axis": lambda a: a.reshape(-1),
    "texts": lambda a: a.astype(str), "whole numbers": lambda a: (a * 9).astype(int), "complex": lambda a: a + 1j,
    "no row": lambda a: a[:0], "a zero row": lambda a: np.concatenate([a[:1] * 0, a[1:]]),
    "records": lambda a: np.zeros(65, [("a", "f4")]),
}  # fmt: skip
LISTS = {
    "numbers": list(range(65)),
    "one twice": ["dog"] * 65,
    "fewer": ["dog"],
    "null": None,
    "object": {},
    "lists": [[1]] * 65,
}
TINY = (
    ("embed_dim", None),
    ("embed_dim", -1),
    ("text_cfg", None),
    ("text_cfg.width", "x"),
    ("text_cfg.heads", 0),
    ("vision_cfg", []),
)


def weights() -> list[Case]:
    name, found = "model_final.pth", []
    for run in (DETECTOR, EVAL):
        found += cases("weights", run, edits(FINAL, BYTES) | changed(FINAL, WRONG), name)
    found += cases(
        "weights", DETECTOR, broken(FINAL, "missing", "a folder", "a FIFO", "a link to itself", "/dev/zero"), name
    )
    found += cases("weights", DETECTOR, stored_bits(FINAL, 4) | changed(FINAL, DESCRIBED), name)
    found += cases(
        "weights", EVAL, edits(FINAL, {f"any bits {seed}": flipped(seed) for seed in range(4)}), name, handled=same
    )
    found += cases("weights", PREDICT, changed(FINAL, DESCRIBED), name)
    start = TRAIN.given("MODEL.WEIGHTS", FINAL, name="train from weights")
    parts = {why: change for why, change in WRONG.items() if why != "half of the weights"}  # which a training may lack
    found += cases("weights", start, changed(FINAL, parts), name)
    for run, file in ((CLIP, "clip/weights.pt"), (SAFE, "clip/weights.safetensors")):
        unseen = () if file.endswith(".pt") else ("a block of zeros",)  # safetensors has no checksums
        found += cases("weights", run, broken(file, but=unseen), file.rpartition("/")[2])
    clip = {
        "nan": lambda d: next(iter(d.values())).fill_(NAN) is None or None,
        "a weight less": lambda d: dict(list(d.items())[1:]),
    }
    found += cases("weights", CLIP, changed("clip/weights.pt", clip), "weights.pt")
    tiny = {f"tiny.json: {place} {value!r}": entry("clip/tiny.json", place, value) for place, value in TINY}
    found += cases("weights", CLIP, tiny | edits("clip/tiny.json", BYTES), "tiny.json", handled=same)
    for file in ("config.json", "model.safetensors"):
        found += cases("weights", BERT, broken(f"clip/bert/{file}", "empty", "a third of it", "noise"), "bert")
    return found


def scripted(world) -> bytes:
    """A TorchScript archive whose __setstate__ writes a file."""

    class Module(torch.nn.Module):
        def __init__(self, path: str):
            super().__init__()
            self.weight, self.path = torch.nn.Parameter(torch.zeros(2)), path

        @torch.jit.export
        def __getstate__(self):
            return (self.path, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.path, self.training = state[0], state[1]
            torch.save(torch.zeros(1), self.path)

        def forward(self, x):
            return x

    torch.jit.script(Module(str(world / MARKER))).save(str(file := world / "script.pt"))
    data = file.read_bytes()
    file.unlink()
    return data


def remote_code(world) -> None:
    """A BERT's folder whose config names Python files."""
    file, more = world / "clip/bert/config.json", {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    put(file, json.dumps(json.loads(file.read_bytes()) | more | {"model_type": "evil"}))
    put(world / "clip/bert/evil.py", f"open({str(world / MARKER)!r}, 'w')\n")


def outside(world) -> None:
    """A note of the cache whose fingerprint leads out of it."""
    (file,) = (world / CACHE / "towers").iterdir()
    put(file, json.dumps(json.loads(file.read_bytes()) | {"fingerprint": "../../../outside"}))


def code() -> list[Case]:
    """Pickles, TorchScript, folders of models and configs that would run code."""
    payloads = {
        "an entry that runs code": lambda world: saved({"model": {"x": torch.zeros(1)}, "y": Payload(world)}),
        "a pickle that runs code": lambda world: pickle.dumps(Payload(world)),
        "a .npy that runs code": lambda world: npy(np.array([Payload(world)] * 3, object)),
        "a TorchScript that runs code": scripted,
    }
    found = []
    for file, run in (
        (FINAL, DETECTOR),
        (FINAL, EVAL),
        ("clip/weights.pt", CLIP),
        (STEP, RESUME),
        (RANK, RESUME),
        (CLASSES, TRAIN),
    ):
        damages = {
            why: lambda world, make=make, file=file: put(world / file, make(world)) for why, make in payloads.items()
        }
        found += cases(
            "code", run, {f"{file}: {why}": damage for why, damage in damages.items()}, file.rpartition("/")[2]
        )
    found += cases("code", BERT, {"a BERT with Python files": remote_code}, "bert", handled=ends)
    return found + cases("code", TRAIN, {"a fingerprint that leaves the cache": outside}, "towers", handled=same)


def state() -> list[Case]:
    found = []
    for file, changes in ((STEP, WRONG | STATE), (RANK, RANKS)):
        damages = changed(file, changes) | edits(file, BYTES) | stored_bits(file, 2)
        found += cases("state", RESUME, damages, file.rpartition("/")[2], handled=same)
    found += cases(
        "state", RESUME, {f"{STEP}: {why}": place(STEP) for why, place in PLACES.items()}, "model_0000000.pth"
    )
    absent = {f"{RANK}: {why}": place(RANK) for why, place in PLACES.items()}
    found += cases("state", RESUME, absent, "iteration_0000000.rank0.pth", handled=ends, said=("rank_states",))
    pointers = {"empty": "", "outside": "../clip/weights.pt", "gone": "model_9999999.pth", "noise": "\x00\xff"}
    kept = RESUME.given("kept")  # do not write last_checkpoint
    found += cases(
        "state", RESUME, contents("run/last_checkpoint", pointers), "last_checkpoint|model_9999999.pth", changed=kept
    )
    metrics = {"empty": b"", "noise": b"\x00\xff\xfe", "numbers": b"1\n2\n", "cut": b'{"iteration": 0, "lo'}
    found += cases("state", RESUME, contents("run/metrics.json", metrics), "metrics.json", handled=ends)
    return found + cases("state", RESUME, broken("run/metrics.json", "a folder"), "metrics.json")


def arrays() -> list[Case]:
    """Embeddings of the classes, with their names, and the rows of the caption cache."""
    damages = {
        why: edited(CLASSES, lambda data, c=change: npy(c(np.load(io.BytesIO(data))))) for why, change in ARRAYS.items()
    }
    found = cases("embeddings", TRAIN, damages | broken(CLASSES), "classes_minilm")
    lists = {name: json.dumps(value) for name, value in LISTS.items()}
    found += cases("embeddings", TRAIN, contents(NAMES, lists), "names.json")

    def rows(suffix, change):
        return lambda world: (
            [put(file, change(file.read_bytes())) for file in (world / CACHE).rglob(f"*{suffix}")] and None
        )

    for suffix, count in ((".rows", 400), (".entries", 60), (".json", 3)):
        changes = {f"bits {seed}": flipped(seed, count) for seed in range(3)} | BYTES
        damages = {f"{suffix}: {why}": rows(suffix, change) for why, change in changes.items()}
        found += cases("caches", CACHED, damages, suffix, handled=close)
    return found


CASES = [*weights(), *code(), *state(), *arrays()]
