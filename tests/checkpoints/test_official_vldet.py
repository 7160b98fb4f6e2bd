"""Official VLDet's files of both benchmarks and stages load as they are (vldet §7)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from clim.checkpoints import SafeCheckpointer
from clim.methods.vldet import VLDet

MANIFESTS = Path(__file__).parents[1] / "modeling"
UNSET = ("MODEL.VOCABULARY.EMBEDDINGS", "MODEL.METHOD.VLDET.EMBEDDINGS", "MODEL.OPEN_VOCAB.BASE_CLASSES")
CLIP = {"rn50_model.visual.conv1.weight": [32, 3, 3, 3], "rn50_model.text_projection": [512, 1024]}
SCORES = "cls_score."


def official_names(detic, *, classes, nouns):
    """{name: shape} of VLDet's files, from those of Detic: Detic's text width and class embeddings are replaced."""
    names = {}
    for name, shape in detic.items():
        start, found, end = name.partition(SCORES)
        if end == "zs_weight":
            names[start + found + "detection_weight"] = [1024, classes + 1]
            names[name] = [1024, nouns + 1]
        elif found:
            names[name] = [1024, *shape[1:]]
        else:
            names[name] = [classes] if name.endswith("freq_weight") else shape
    return {name: shape for name, shape in names.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("config, manifest, classes, nouns", [
    ("BoxSup_VLDet_C4_official.yaml", "detic_ovcoco_r50_keys.json", 65, 4764),
    ("VLDet_C4_official.yaml", "detic_ovcoco_r50_keys.json", 65, 4764),
    ("lvis/VLDet_C2_official.yaml", "detic_ovlvis_r50_keys.json", 1203, 6250),
])  # fmt: skip
def test_an_official_file(load_cfg, tmp_path, monkeypatch, config, manifest, classes, nouns):
    """Every tensor of the model arrives, the file's classes and nouns as well, where the config names none."""
    shapes = official_names(json.loads((MANIFESTS / manifest).read_text()), classes=classes, nouns=nouns)
    given = {name: torch.tensor(1 + i / 512).expand(shape) for i, (name, shape) in enumerate((shapes | CLIP).items())}
    given |= {name: torch.arange(nouns + 1.0).expand(1024, -1) for name in given if name.endswith("zs_weight")}
    torch.save({"model": given, "iteration": 89999}, tmp_path / "official.pth")
    reports = []
    monkeypatch.setattr(SafeCheckpointer, "_log_incompatible_keys", lambda _, report: reports.append(report))

    def load(nouns=""):
        model = build_model(load_cfg(config, UNSET[0], "", UNSET[1], nouns, UNSET[2], ""))
        SafeCheckpointer(model, "").load(str(tmp_path / "official.pth"), checkpointables=[])
        return model, reports.pop()

    model, report = load()
    has_nouns = isinstance(getattr(model, "method", None), VLDet)
    assert not report.unexpected_keys  # the nouns of the file, where the config has no method, are left out
    assert not report.incorrect_shapes and not [n for n in report.missing_keys if "num_batches_tracked" not in n]
    state = model.state_dict()
    if has_nouns:
        table = state.pop("method.nouns")
        assert table.shape == (nouns, 1024) and torch.equal(table, torch.arange(nouns + 0.0)[:, None].expand(-1, 1024))
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    theirs = {name.replace("detection", "zs"): given[name] for name in given if not name.endswith("zs_weight")}
    assert state.keys() == theirs.keys() - CLIP.keys()
    assert all((tensor == theirs[name]).all() for name, tensor in state.items())
    if config.startswith("VLDet"):
        rows = np.random.default_rng(0).normal(size=(7, 1, 1024)).astype(np.float32)
        torch.save(torch.from_numpy(rows), tmp_path / "nouns.pth")
        model, _ = load(str(tmp_path / "nouns.pth"))
        torch.testing.assert_close(model.method.nouns, torch.nn.functional.normalize(torch.from_numpy(rows)[:, 0]))
        SafeCheckpointer(model, str(tmp_path)).save("ours")  # and our own file gives its nouns to a config without any
        (tmp_path / "ours.pth").rename(tmp_path / "official.pth")
        assert torch.equal(load()[0].method.nouns, model.method.nouns)
