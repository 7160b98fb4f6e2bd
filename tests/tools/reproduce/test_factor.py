"""When do mosaics win: what the rows of a factor share, and in what they differ."""

from collections import Counter

import pytest

from experiments.rows import Row, config_of
from mini.factor import FACTORS, set_name
from reproduce import factor, ov_coco

CANVASES = {
    "DATALOADER.CAPTIONS_PER_GPU", "DATALOADER.MOSAICS_PER_GPU", "INPUT.MOSAIC.GRIDS", "INPUT.MOSAIC.PERMUTE_TEXTS",
    "INPUT.CAPTION.SCALES",
}  # fmt: skip


def configs(table):
    return {entry.name: config_of(entry.mini) for entry in table.entries}


def test_rows_of_a_factor_differ_in_their_canvases_alone(differences):
    assert [len(table.entries) for table in factor.TABLES] == [5, 5, 5, 6]
    rows = [entry.mini for table in factor.TABLES for entry in table.entries]
    assert {row.starts_from for row in rows} == {(("MODEL.WEIGHTS", ov_coco.BASE, "model_final.pth"),)}
    for value, table in zip(FACTORS, factor.TABLES, strict=True):
        found = configs(table)
        loader = {name: (c.DATALOADER.CAPTIONS_PER_GPU, c.DATALOADER.MOSAICS_PER_GPU) for name, c in found.items()}
        assert list(loader.values()) == [(4, 0), (21, 0), (2, 2), (21, 0), (0, 1), (2, 2)][: len(found)]
        assert [c.INPUT.MOSAIC.PERMUTE_TEXTS for c in found.values()] == [False] * 5 + [True] * (value == 4)
        for name, cfg in found.items():
            own, folder = {entry[0]: entry[2:] for entry in cfg.DATASETS.OWN}, f"mini_factor/{set_name(value)}"
            assert cfg.DATASETS.CAPTIONS == (f"mini_factor_{set_name(value)}",)
            json_file = f"mini_factor/annotations/captions_{set_name(value)}.json"
            assert own[cfg.DATASETS.CAPTIONS[0]] == [json_file, folder]
            assert cfg.INPUT.MOSAIC.GRIDS == ([2] if name == "CLIM, 4 captions" else [2, 3, 4])
            assert differences(cfg, found["4 captions"]).keys() <= CANVASES and cfg.MODEL.METHOD.DETIC.TAG_WEIGHT == 0
        detic = config_of(Row("mini/detic.yaml"))  # whose other settings the rows share
        others = {"DATASETS.CAPTIONS", "DATASETS.OWN", "MODEL.METHOD.DETIC.TAG_WEIGHT"}
        assert differences(found["4 captions"], detic).keys() == others


def test_scaled_images_are_as_small_as_those_of_clim():
    cfg = configs(factor.TABLES[0])
    clim, scaled = cfg["CLIM"], cfg["21 captions, scaled down as tiles"]
    shown = Counter({1.0: clim.DATALOADER.CAPTIONS_PER_GPU})  # mean number of images a step, by scale
    for n in clim.INPUT.MOSAIC.GRIDS:
        scale = clim.INPUT.MOSAIC.SIZE / n / clim.INPUT.CAPTION.SHORT_SIDE
        shown[round(scale, 4)] += clim.DATALOADER.MOSAICS_PER_GPU * n * n / len(clim.INPUT.MOSAIC.GRIDS)
    scales = Counter(scaled.INPUT.CAPTION.SCALES)
    assert scales.keys() == shown.keys()
    for scale, number in shown.items():
        assert scales[scale] / scales.total() == pytest.approx(number / shown.total())
    assert shown.total() == pytest.approx(21.3, abs=0.1)
