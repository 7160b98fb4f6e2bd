"""Mistakes in a config that would otherwise show late."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.engine.checks import check_composition, check_datasets, check_device, check_sources, check_text_width
from clim.errors import UserError


def test_processes_on_the_cpu_beside_gpus(monkeypatch, tiny_cfg):
    cfg = tiny_cfg()
    monkeypatch.setattr("clim.engine.checks.comm.get_world_size", lambda: 2)
    check_device(cfg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        check_device(cfg)


def test_pairs_and_method_belong_together(tiny_cfg):
    check_sources(tiny_cfg())
    check_sources(tiny_cfg(config="mini/base_stage.yaml"))
    with pytest.raises(UserError, match="set MODEL.METHOD.NAME"):
        check_sources(tiny_cfg("MODEL.METHOD.NAME", ""))
    with pytest.raises(UserError, match="Detic needs image-text pairs"):
        check_sources(tiny_cfg("DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0))


def test_sources_that_nobody_reads(tiny_cfg):
    with pytest.raises(UserError, match="REGIONS_PER_GPU is 1, but MODEL.META_ARCHITECTURE OpenVocabRCNN learns"):
        check_sources(tiny_cfg("DATALOADER.REGIONS_PER_GPU", 1))
    with pytest.raises(UserError, match="DETECTION_PER_GPU is 2, but MODEL.META_ARCHITECTURE GridTextModel learns"):
        check_sources(tiny_cfg("DATALOADER.DETECTION_PER_GPU", 2, config="mini/ovrcnn_pretrain.yaml"))
    with pytest.raises(UserError, match="CAPTIONS_PER_GPU is 3, but MODEL.METHOD.NAME RegionClip learns"):
        check_sources(tiny_cfg("DATALOADER.CAPTIONS_PER_GPU", 3, config="mini/clip_region_clip.yaml"))


def test_what_is_evaluated_on_what(tiny_cfg):
    with pytest.raises(UserError, match="GridTextModel is not evaluated, only a detector that starts from it"):
        check_datasets(tiny_cfg(config="mini/ovrcnn_pretrain.yaml"), training=False)
    check_datasets(tiny_cfg(config="mini/ovrcnn_pretrain.yaml"), training=True)
    with pytest.raises(UserError, match="mini_val_regions is a set of type regions, but .* is evaluated on ov_coco"):
        check_datasets(tiny_cfg("DATASETS.TEST", "('mini_val_regions',)"), training=True)
    with pytest.raises(UserError, match="DATASETS.TEST is empty: there is nothing to evaluate on"):
        check_datasets(tiny_cfg("DATASETS.TEST", "()"), training=False)
    check_datasets(tiny_cfg("DATASETS.TEST", "()"), training=True)


def test_data_sets_that_are_not_registered(tiny_cfg):
    for key in ("TRAIN", "CAPTIONS", "TEST"):
        cfg = tiny_cfg(f"DATASETS.{key}", "('mini_ov_vall',)")
        with pytest.raises(UserError, match=rf"DATASETS.{key} names mini_ov_vall.* near it: mini_ov_val,"):
            check_datasets(cfg, training=True)
    check_datasets(tiny_cfg("DATASETS.TRAIN", "('nothing',)"), training=False)  # not read without training


def test_data_sets_of_other_classes(tiny_cfg):
    check_datasets(tiny_cfg(), training=True)
    with pytest.raises(UserError, match="coco_generalized_zeroshot_val has 80 classes, but the detector 65"):
        check_datasets(tiny_cfg("DATASETS.TEST", "('coco_generalized_zeroshot_val',)"), training=False)
    with pytest.raises(UserError, match="mini_ov_train has 65 classes, but the detector 2"):
        check_datasets(tiny_cfg("MODEL.VOCABULARY.NAMES", "['cat', 'dog']"), training=True)
    DatasetCatalog.register("own_boxes", list)
    try:
        check_datasets(tiny_cfg("DATASETS.TRAIN", "('own_boxes',)"), training=True)  # tells no classes
    finally:
        DatasetCatalog.remove("own_boxes")
        MetadataCatalog.remove("own_boxes")


def test_text_width(tiny_cfg, hash_tower):
    check_text_width(tiny_cfg(), hash_tower(384))
    with pytest.raises(UserError, match="gives embeddings of 512 dimensions, but MODEL.TEXT.DIM is 384"):
        check_text_width(tiny_cfg(), hash_tower(512))


def test_canvases_on_the_device_leave_no_other_source_unused(tiny_cfg):
    check_composition(tiny_cfg())
    check_composition(
        tiny_cfg(
            "MODEL.META_ARCHITECTURE",
            "ImageTextModel",
            "INPUT.MOSAIC.COMPOSE",
            "device",
            "DATALOADER.MOSAICS_PER_GPU",
            0,
        )
    )
    with pytest.raises(UserError, match=r"MOSAICS_PER_GPU 2 and REGIONS_PER_GPU 0 to 0"):
        check_composition(tiny_cfg("MODEL.META_ARCHITECTURE", "ImageTextModel", "INPUT.MOSAIC.COMPOSE", "device"))


def test_canvases_on_the_device_need_a_model_that_makes_them(tiny_cfg):
    with pytest.raises(UserError, match="INPUT.MOSAIC.COMPOSE device is for ImageTextModel"):
        check_composition(tiny_cfg("INPUT.MOSAIC.COMPOSE", "device", "DATALOADER.MOSAICS_PER_GPU", 0))
