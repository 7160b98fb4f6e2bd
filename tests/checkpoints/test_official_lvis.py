"""Official Detic's files on OV-LVIS (BoxSup-C2_Lbase…, Detic_LbaseCCcapimg…) load as they are."""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model

from clim.checkpoints import SafeCheckpointer

MANIFEST = json.loads((Path(__file__).parents[1] / "modeling/detic_ovlvis_r50_keys.json").read_text())
TEXT = {"text_encoder.positional_embedding": [77, 512], "text_encoder.ln_final.weight": [512]}


def test_an_official_file(load_cfg, tmp_path, caplog, monkeypatch):
    """Names and shapes are official, and every tensor arrives. The config's classes and mask stay, with warnings."""
    np.save(tmp_path / "classes.npy", np.random.default_rng(0).normal(size=(1203, 512)))
    info = [{"id": i, "image_count": 9 * min(i % 4, 1)} for i in range(1203)]  # every fourth class has no boxes
    (tmp_path / "cat_info.json").write_text(json.dumps(info))
    keys = ("MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "classes.npy"))
    keys += ("MODEL.OPEN_VOCAB.BASE_CLASSES", str(tmp_path / "cat_info.json"))
    model = build_model(load_cfg("lvis/BoxSup_C2_official.yaml", *keys))
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == MANIFEST
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith("_weight")}
    assert len(before) == 6 and before["roi_heads.box_predictor.2.freq_weight"][:5].tolist() == [0, 3, 3, 3, 0]

    # One number in each tensor, which is small on the disk. Files of 2022 lack the counts.
    shapes = {name: shape for name, shape in (MANIFEST | TEXT).items() if not name.endswith("num_batches_tracked")}
    given = {name: torch.tensor(1 + i / 512).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    more = {"optimizer": {"state": {}, "param_groups": []}, "scheduler": {"last_epoch": 89999}, "iteration": 89999}
    torch.save({"model": given} | more, tmp_path / "official.pth")
    reports = []
    monkeypatch.setattr(SafeCheckpointer, "_log_incompatible_keys", lambda _, report: reports.append(report))

    def load():
        caplog.clear()
        checkpointer = SafeCheckpointer(model, "")
        checkpointer.load(str(tmp_path / "official.pth"), checkpointables=[])
        assert not checkpointer.lacking
        report = reports.pop()
        assert not report.missing_keys and not report.unexpected_keys and not report.incorrect_shapes
        return model.state_dict(), [record.getMessage() for record in caplog.records if record.name[:4] == "clim"]

    loaded, warnings = load()
    assert all((loaded[name] == given[name]).all() for name in given.keys() - before.keys() - TEXT.keys())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.items())
    assert sum("class embeddings (1203 classes) differ" in text for text in warnings) == 3
    assert sum("masks other classes than the config" in text for text in warnings) == 3

    for predictor in model.roi_heads.box_predictor:  # counts, all positive as the file's: the same mask
        predictor.freq_weight.fill_(7)
    loaded, warnings = load()
    assert len(warnings) == 3 and all((v == 7).all() for name, v in loaded.items() if name.endswith("freq_weight"))
    for predictor in model.roi_heads.box_predictor:  # as with MODEL.VOCABULARY.EMBEDDINGS ""
        predictor.vocabulary_wins = False
    loaded, warnings = load()
    assert not warnings and all((loaded[name] == given[name]).all() for name in before)
