"""Batches to test on: an image that gives no input is reported and left out, the others stay."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.data.test_loader import Skipped, SkippingLoader, build_detection_loader

LOST, BLANK = Skipped("a.jpg", "missing"), Skipped("b.jpg", "no region left")


def test_skipped_images_are_reported_in_every_pass_and_left_out():
    skipped = []
    batches = [[{"id": 1}, LOST], [BLANK], [{"id": 2}], [LOST, {"id": 3}, {"id": 4}], []]
    loader = SkippingLoader(batches, on_skip=skipped.append)
    for count in (1, 2):
        assert list(loader) == [[{"id": 1}], [{"id": 2}], [{"id": 3}, {"id": 4}]]
        assert skipped == [LOST, BLANK, LOST] * count
    assert len(loader) == 5  # it is not known beforehand what is skipped


def test_an_image_is_reported_before_its_batch_is_given():
    skipped = []
    batches = iter(SkippingLoader([[{"id": 1}, LOST], [BLANK]], on_skip=skipped.append))
    assert next(batches) == [{"id": 1}] and skipped == [LOST]


def test_detection_goes_on_without_damaged_images(make_photos, load_cfg):
    records = make_photos([(60, 40), (50, 70), (64, 64)], ext="jpg")
    damaged = Path(records[1]["file_name"])
    damaged.write_bytes(damaged.read_bytes()[:200])
    records[2]["width"] += 1  # the file is another image than the record's
    DatasetCatalog.register("damaged_val", lambda: records)
    skipped = []
    try:
        cfg = load_cfg("mini/detic.yaml", "DATALOADER.NUM_WORKERS", 0)
        loader = build_detection_loader(cfg, "damaged_val", on_skip=skipped.append)
        found = [sample["image_id"] for batch in loader for sample in batch]
    finally:
        DatasetCatalog.remove("damaged_val")
        MetadataCatalog.pop("damaged_val", None)
    assert found == [records[0]["image_id"]]
    assert [file_name for file_name, _ in skipped] == [record["file_name"] for record in records[1:]]
