"""Detection at test: a damaged picture is left out and told, the others are detected in."""

import logging
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.data.test_loader import detection_test_loader


def test_damaged_pictures_are_left_out_and_told(make_photos, load_cfg, caplog):
    records = make_photos([(60, 40), (50, 70), (64, 64)], ext="jpg")
    damaged = Path(records[1]["file_name"])
    damaged.write_bytes(damaged.read_bytes()[:200])
    records[2]["width"] += 1  # another picture than the one of the record
    DatasetCatalog.register("damaged_val", lambda: records)
    try:
        loader = detection_test_loader(
            load_cfg("mini/detic.yaml", "DATALOADER.NUM_WORKERS", 0), "damaged_val"
        )
        with caplog.at_level(logging.WARNING, "clim"):
            found = [sample["image_id"] for batch in loader for sample in batch]
    finally:
        DatasetCatalog.remove("damaged_val")
        MetadataCatalog.pop("damaged_val", None)
    assert found == [records[0]["image_id"]]
    assert all(record["file_name"] in caplog.text for record in records[1:])
