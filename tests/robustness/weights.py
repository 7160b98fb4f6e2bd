"""Files of weights, embeddings, caches, and the state of a run that is resumed."""

import io
import json
import pickle
import zipfile

import numpy as np
import torch

from .damage import BYTES, PLACES, edited, entry, flipped, put, written
from .entries import BERT, CACHED, CLIP, DETECTOR, EVAL, PREDICT, RESUME, SAFE, TRAIN
from .runner import MARKER, Case, close, ends, same

FINAL, STEP, RANK = "run/model_final.pth", "run/model_0000000.pth", "run/rank_states/iteration_0000000.rank0.pth"
CLASSES, NAMES = "datasets/mini/metadata/classes_minilm.npy", "datasets/mini/metadata/classes_minilm.names.json"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, world):
        self.code = f"open({str(world / MARKER)!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.code,)


def saved(content) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def loaded(data: bytes):
    return torch.load(io.BytesIO(data), weights_only=False)


def content(file: str, change):
    """Another content of a file of torch.save; ``change`` gets it and may give another one."""

    def damage(world):
        value = loaded((world / file).read_bytes())
        other = change(value)
        put(world / file, saved(value if other is None else other))

    return damage


def tensor(data: dict, value):
    """The first weight of the head gets ``value`` somewhere."""
    name = next(name for name in data["model"] if name.endswith("bbox_pred.weight"))
    data["model"][name].view(-1)[3] = value


def every(function):
    """``function`` of each floating tensor."""

    def change(data):
        data["model"] = {k: function(v) if v.is_floating_point() else v for k, v in data["model"].items()}

    return change


def stored_bits(file: str, seed: int):
    """Bits of a stored tensor of the zip are flipped: its checksum is wrong."""

    def damage(world):
        data = (world / file).read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            info = max(archive.infolist(), key=lambda info: info.file_size)
        start = info.header_offset + 200
        put(
            world / file,
            data[:start]
            + flipped(seed)(data[start : start + info.file_size - 200])
            + data[start + info.file_size - 200 :],
        )

    return damage


WRONG = {
    "nan": lambda data: tensor(data, float("nan")), "inf": lambda data: tensor(data, float("inf")), "all nan": every(lambda v: v * float("nan")),
    "no model": lambda data: {"optimizer": data["optimizer"]}, "model a list": lambda data: data | {"model": [1]}, "a list": lambda data: [1, 2],
    "a number": lambda data: 5, "empty model": lambda data: data | {"model": {}}, "names that are numbers": lambda data: data | {"model": {1: torch.zeros(2)}},
    "a weight is text": lambda data: data["model"].update(x="text"), "half of the weights": lambda data: data | {"model": dict(list(data["model"].items())[::2])},
    "other shapes": every(lambda v: v.reshape(-1)[:1]), "a sparse weight": lambda data: data["model"].update({next(k for k in data["model"] if k.endswith("bbox_pred.weight")): torch.zeros(4, 4).to_sparse()}),
    "other names": lambda data: data | {"model": {f"x.{k}": v for k, v in data["model"].items()}},
}  # fmt: skip
DESCRIBED = {
    "no description": lambda data: data.pop("clim"), "a text": lambda data: data.update(clim="x"), "no config": lambda data: data["clim"].pop("config"),
    "config a number": lambda data: data["clim"].update(config=5), "config with code": lambda data: data["clim"].update(config="SEED: !!python/object/apply:os.system ['touch /tmp/x']"),
    "an unknown key": lambda data: data["clim"].update(config="MODEL:\n  DEVCIE: cpu\n"), "class_names null": lambda data: data["clim"].update(class_names=None),
    "class_names of numbers": lambda data: data["clim"].update(class_names=[1, 2]), "fewer names": lambda data: data["clim"].update(class_names=["dog"]),
    "rows a text": lambda data: data["clim"].update(rows="x"), "rows another number": lambda data: data["clim"].update(rows=3),
    "names twice": lambda data: data["clim"].update(class_names=["dog"] * len(data["clim"]["class_names"])),
}  # fmt: skip
STATE = {
    "no optimizer": lambda data: data.pop("optimizer"), "no scheduler": lambda data: data.pop("scheduler"), "no iteration": lambda data: data.pop("iteration"),
    "iteration a text": lambda data: data.update(iteration="x"), "iteration negative": lambda data: data.update(iteration=-5), "iteration nan": lambda data: data.update(iteration=float("nan")),
    "optimizer a list": lambda data: data.update(optimizer=[1]), "optimizer empty": lambda data: data.update(optimizer={}), "scheduler empty": lambda data: data.update(scheduler={}),
    "optimizer without groups": lambda data: data["optimizer"].update(param_groups=[]), "nan in the optimizer": lambda data: next(iter(data["optimizer"]["state"].values()))["exp_avg"].fill_(float("nan")),
    "optimizer of other shapes": lambda data: [s.update(exp_avg=torch.zeros(3)) for s in data["optimizer"]["state"].values()] and None,
    "optimizer without its state": lambda data: data["optimizer"].update(state={}), "optimizer null": lambda data: data.update(optimizer=None),
}  # fmt: skip
RANKS = {
    "no python": lambda data: data.pop("python"), "no torch": lambda data: data.pop("torch"), "torch of another size": lambda data: data.update(torch=torch.zeros(3, dtype=torch.uint8)),
    "queues null": lambda data: data.update(queues=None), "world_size a text": lambda data: data.update(world_size="x"), "numpy null": lambda data: data.update(numpy=None),
    "a list": lambda data: [1], "nan in a queue": lambda data: [q.fill_(float("nan")) for q in data["queues"].values() if q.is_floating_point()] and None,
}  # fmt: skip


def weights() -> list[Case]:
    cases, name = [], FINAL.rpartition("/")[2]
    for why, change in BYTES.items():
        for run in (DETECTOR, EVAL):
            cases.append(Case("weights", f"{name}: {why}", run, edited(FINAL, change), (name,)))
    for why in PLACES:
        cases.append(Case("weights", f"{name}: {why}", DETECTOR, PLACES[why](FINAL), (name,)))
    for seed in range(4):
        cases.append(Case("weights", f"{name}: flipped bits {seed}", DETECTOR, stored_bits(FINAL, seed), (name,)))
        cases.append(
            Case("weights", f"{name}: any flipped bits {seed}", EVAL, edited(FINAL, flipped(seed)), (name,), same)
        )
    for why, change in WRONG.items():
        for run in (DETECTOR, EVAL):
            cases.append(Case("weights", f"{name}: {why}", run, content(FINAL, change), (name,)))
    for why, change in DESCRIBED.items():
        for run in (DETECTOR, PREDICT) if "n" == why[0] else (DETECTOR,):
            cases.append(Case("weights", f"{name}: description: {why}", run, content(FINAL, change), (name,)))
    start = TRAIN._replace(arguments=("MODEL.WEIGHTS", FINAL), name="train from weights")
    for why in ("nan", "no model", "half of the weights", "a weight is text"):
        cases.append(Case("weights", f"{name}: {why}", start, content(FINAL, WRONG[why]), (name,)))
    return cases


def code() -> list[Case]:
    """Pickles, TorchScript and folders of models that would run code."""

    def pickled(file, holder):
        return lambda world: put(world / file, holder(world))

    def scripted(world):
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

    model = "clip/weights.pt"
    both = lambda world: saved({"model": {"x": torch.zeros(1)}, "y": Payload(world)})  # noqa: E731
    cases = [
        Case("code", f"{file}: a pickle that runs code", run, pickled(file, holder), (file.rpartition("/")[2],))
        for file, run in ((FINAL, DETECTOR), (FINAL, EVAL), (model, CLIP), (STEP, RESUME), (RANK, RESUME), (CLASSES, TRAIN))
        for holder in (both, lambda world: pickle.dumps(Payload(world)))
    ]  # fmt: skip
    cases.append(
        Case(
            "code",
            "weights as .npy of objects",
            TRAIN,
            lambda world: np.save(world / CLASSES, np.array([Payload(world)] * 3, object)),
            ("classes_minilm.npy",),
        )
    )
    cases.append(
        Case("code", "bert: tokenizer of custom code", BERT, lambda world: remote_code(world), ("bert",), ends)
    )
    note = "datasets/mini/metadata/captions_minilm/towers"

    def outside(world):
        (file,) = (world / note).iterdir()
        put(file, json.dumps(json.loads(file.read_bytes()) | {"fingerprint": "../../../outside"}))

    cases.append(
        Case("code", "a note whose fingerprint leaves the cache", TRAIN, outside, ("towers|fingerprint",), same)
    )
    return cases


def remote_code(world):
    """A BERT's folder whose config names Python files."""
    file = world / "clip/bert/config.json"
    more = {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, "model_type": "evil"}
    put(file, json.dumps(json.loads(file.read_bytes()) | more))
    put(world / "clip/bert/evil.py", f"open({str(world / MARKER)!r}, 'w')\n")


def state() -> list[Case]:
    cases = []
    for file, changes in ((STEP, WRONG | STATE), (RANK, RANKS)):
        name = file.rpartition("/")[2]
        cases += [
            Case("state", f"{name}: {why}", RESUME, content(file, change), (name,)) for why, change in changes.items()
        ]
        cases += [
            Case("state", f"{name}: {why}", RESUME, edited(file, change), (name,)) for why, change in BYTES.items()
        ]
        cases += [Case("state", f"{name}: {why}", RESUME, PLACES[why](file), (name,)) for why in PLACES]
        cases += [
            Case("state", f"{name}: flipped bits {seed}", RESUME, stored_bits(file, seed), (name,)) for seed in range(2)
        ]
    for why, text in {
        "empty": "",
        "outside": "../clip/weights.pt",
        "gone": "model_9999999.pth",
        "noise": "\x00\xff",
        "two lines": "model_0000000.pth\nx",
    }.items():
        told = ("last_checkpoint|model_9999999.pth",)
        cases.append(
            Case(
                "state",
                f"last_checkpoint: {why}",
                RESUME,
                written("run/last_checkpoint", text),
                told,
                changed=RESUME._replace(arguments=("kept",)),
            )
        )
    metrics = {"empty": b"", "noise": b"\x00\xff\xfe", "numbers": b"1\n2\n", "cut": b'{"iteration": 0, "lo'}
    cases += [
        Case("state", f"metrics.json: {why}", RESUME, written("run/metrics.json", data), ("metrics.json",), ends)
        for why, data in metrics.items()
    ]
    cases += [
        Case("state", f"{name}: a folder", RESUME, PLACES["a folder"](f"run/{name}"), (name,))
        for name in ("metrics.json", "last_checkpoint")
    ]
    return cases


def arrays() -> list[Case]:
    """Embeddings of the classes, with their names, and rows of the caption cache."""

    def array(change):
        return edited(CLASSES, lambda data: _npy(change(np.load(io.BytesIO(data)))))

    changes = {
        "nan": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, np.nan, a), "inf": lambda a: a + np.inf, "zeros": lambda a: a * 0, "a row less": lambda a: a[1:],
        "a column less": lambda a: a[:, 1:], "one axis": lambda a: a.reshape(-1), "texts": lambda a: a.astype(str), "whole numbers": lambda a: (a * 9).astype(int),
        "complex": lambda a: a + 1j, "no row": lambda a: a[:0], "a zero row": lambda a: np.concatenate([a[:1] * 0, a[1:]]), "records": lambda a: np.zeros(65, [("a", "f4")]),
    }  # fmt: skip
    base = "classes_minilm"
    cases = [Case("embeddings", why, TRAIN, array(change), (base,)) for why, change in changes.items()]
    cases += [Case("embeddings", why, TRAIN, edited(CLASSES, change), (base,)) for why, change in BYTES.items()]
    cases += [Case("embeddings", why, TRAIN, PLACES[why](CLASSES), (base,)) for why in PLACES]
    for why, value in {
        "numbers": list(range(65)),
        "one twice": ["dog"] * 65,
        "fewer": ["dog"],
        "null": None,
        "object": {},
        "null inside": [None] * 65,
        "lists": [[1]] * 65,
    }.items():
        cases.append(Case("embeddings", f"names {why}", TRAIN, written(NAMES, json.dumps(value)), ("names.json",)))

    def rows(suffix, change):
        def damage(world):
            for file in (world / "datasets/mini/metadata/captions_minilm").rglob(f"*{suffix}"):
                put(file, change(file.read_bytes()))

        return damage

    for seed in range(3):
        cases.append(
            Case("caches", f"rows: flipped bits {seed}", CACHED, rows(".rows", flipped(seed, 400)), (".rows",), close)
        )
        cases.append(
            Case("caches", f"keys: flipped bits {seed}", CACHED, rows(".keys", flipped(seed, 60)), (".keys",), close)
        )
        cases.append(
            Case("caches", f"notes: flipped bits {seed}", CACHED, rows(".json", flipped(seed, 3)), (".json",), close)
        )
    for suffix in (".rows", ".keys", ".json"):
        for why in ("empty", "a third of it", "a block of zeros", "noise"):
            cases.append(Case("caches", f"{suffix}: {why}", CACHED, rows(suffix, BYTES[why]), (suffix,), close))
    return cases


def _npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def towers() -> list[Case]:
    """CLIP's weights and json, and a BERT's folder."""
    cases = []
    for run, file in ((CLIP, "clip/weights.pt"), (SAFE, "clip/weights.safetensors")):
        name = file.rpartition("/")[2]
        cases += [
            Case("weights", f"{name}: {why}", run, edited(file, change), (name,)) for why, change in BYTES.items()
        ]
        cases += [Case("weights", f"{name}: {why}", run, PLACES[why](file), (name,)) for why in PLACES]
    nan = {
        "nan": lambda data: next(iter(data.values())).fill_(float("nan")),
        "a weight less": lambda data: data.pop(next(iter(data))),
    }
    cases += [
        Case(
            "weights",
            f"weights.pt: {why}",
            CLIP,
            content("clip/weights.pt", lambda d, c=change: c(d) and None),
            ("weights.pt",),
        )
        for why, change in nan.items()
    ]
    for place, value in (
        ("embed_dim", None),
        ("embed_dim", -1),
        ("text_cfg", None),
        ("text_cfg.width", "x"),
        ("text_cfg.heads", 0),
        ("vision_cfg", []),
        ("text_cfg.layers", -1),
    ):
        cases.append(
            Case(
                "weights",
                f"tiny.json: {place} {value!r}",
                CLIP,
                entry("clip/tiny.json", place, value),
                ("tiny.json",),
                same,
            )
        )
    cases += [
        Case("weights", f"tiny.json: {why}", CLIP, edited("clip/tiny.json", change), ("tiny.json",))
        for why, change in BYTES.items()
    ]
    for file in ("config.json", "model.safetensors", "vocab.txt"):
        for why in ("empty", "a third of it", "noise"):
            if file != "vocab.txt" or why == "noise":
                cases.append(
                    Case(
                        "weights", f"bert/{file}: {why}", BERT, edited(f"clip/bert/{file}", BYTES[why]), ("bert",), same
                    )
                )
    return cases


CASES = [*weights(), *code(), *state(), *arrays(), *towers()]
