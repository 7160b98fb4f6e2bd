"""Joint batches: the same with any number of workers, resumed and over ranks; test batches."""

import gc
import importlib
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data import loader
from clim.data.loader import STREAMS, Skipped, batches, build_train_loader, caption_records, draws
from clim.errors import UserError
from neighbours.search import save_neighbours

SIZES = [(40, 60), (60, 40), (48, 48), (30, 64), (64, 36), (50, 50), (44, 60), (60, 52)]
SMALL = [
    "DATASETS.TRAIN", ("test_loader_boxes",), "DATASETS.CAPTIONS", ("test_loader_pairs",),
    "DATASETS.REGIONS", ("test_loader_regions",), "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MAX_SIZE_TRAIN", 48,
    "INPUT.CAPTION.SHORT_SIDE", 24, "INPUT.CAPTION.LONG_SIDE", 40, "INPUT.MOSAIC.SIZE", 48, "INPUT.REGIONS.SIZE", 32,
]  # fmt: skip
NO_MOSAICS, NO_CAPTIONS, NO_BOXES = (
    (f"DATALOADER.{source}_PER_GPU", 0) for source in ("MOSAICS", "CAPTIONS", "DETECTION")
)
REGIONS_ONLY = (*NO_MOSAICS, *NO_CAPTIONS, *NO_BOXES, "DATALOADER.REGIONS_PER_GPU", 2)


@pytest.fixture(scope="module", autouse=True)
def pairs(make_photos):
    """Data sets of 8 images with boxes (the first has none), 24 pairs and 6 images with pseudo-labels."""
    boxes, pairs, regions = make_photos(SIZES), make_photos(SIZES * 3, first_id=1000), make_photos(SIZES[:6])
    for i, record in enumerate(boxes):
        record["annotations"] = [
            {"bbox": [4, 4, 20, 16 + i], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i, "iscrowd": 0}
        ] * (i > 0)
    for record in regions:
        record |= {"boxes": np.float32([[1, 2, 9, 12]]), "nouns": np.array([3])}
    sets = {"test_loader_boxes": boxes, "test_loader_pairs": pairs, "test_loader_regions": regions}
    sets |= {"test_loader_bare": [{"image_id": 1, "file_name": "a.jpg"}], "test_loader_empty": boxes[:1]}
    for name, records in sets.items():
        DatasetCatalog.register(name, lambda records=records: records)
    yield pairs
    for name in sets:
        DatasetCatalog.remove(name)


@pytest.fixture
def take(load_cfg):
    """``take(count, "KEY", value, …, start=0)``: the first batches of a loader."""

    def taken(count, *overrides, start=0, seed=3):
        cfg = load_cfg("mini/detic_clim.yaml", *SMALL, *overrides)
        return list(islice(build_train_loader(cfg, seed=seed, start_iter=start), count))

    return taken


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("device, pins", [("cpu", False), ("cuda:1", True)])
def test_batches_for_cuda_have_pixels_in_pinned_memory_and_the_rest_as_it_is(take, monkeypatch, device, pins, workers):
    pin = importlib.import_module("torch.utils.data._utils.pin_memory").pin_memory
    asked, real = [], loader.DataLoader

    def without_pinning(*args, pin_memory, **options):
        asked.append(pin_memory)
        return real(*args, **options)

    monkeypatch.setattr(loader, "DataLoader", without_pinning)
    (batch,) = take(1, "MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", workers, "DATALOADER.REGIONS_PER_GPU", 2)
    assert asked == [pins]
    pinned: list = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor.clone())
    copied = pin(batch)
    assert flat(copied) == flat(batch) and len(pinned) == 8
    for source in STREAMS:
        for old, new in zip(batch[source], copied[source], strict=True):
            assert new["image"] is not old["image"] and new["image"].shape in pinned


def flat(value):
    """Everything in a batch as plain values and bytes, comparable with ==."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: flat(v) for k, v in value.items()}
    if isinstance(value, list):
        return [flat(v) for v in value]
    if hasattr(value, "get_fields"):
        fields = value.get_fields()
        return flat(fields["gt_boxes"].tensor), flat(fields["gt_classes"]), value.image_size
    return flat(vars(value)) if hasattr(value, "__dict__") else value


def ids(batch, source):
    if source == "detection":
        return [s["image_id"] for s in batch[source]]
    return [int(s["tiles"].image_ids[0]) for s in batch[source]]


def counts(batch):
    return {k: len(v) for k, v in batch.items() if v}


# ---- joint batches


def test_an_iteration_holds_the_sources_that_are_asked_for(take):
    assert [counts(b) for b in take(3)] == [{"detection": 2, "captions": 2, "mosaics": 2}] * 3
    assert [counts(b) for b in take(2, *NO_CAPTIONS, *NO_MOSAICS)] == [{"detection": 2}] * 2
    unread = ("DATASETS.TRAIN", ("no_such_set",))
    found = take(2, *NO_BOXES, *unread, "DATALOADER.REGIONS_PER_GPU", 2)
    assert [counts(b) for b in found] == [{"captions": 2, "mosaics": 2, "regions": 2}] * 2
    assert all(sample["image"].shape == (3, 32, 32) for b in found for sample in b["regions"])
    crops = take(1, *NO_BOXES, *NO_MOSAICS, "INPUT.CAPTION.CROP", 20)
    assert all(sample["image"].shape == (3, 20, 20) for b in crops for sample in b["captions"])


@pytest.mark.parametrize("alternate", [(), (1, 1, 2), "regions"])
def test_batches_depend_neither_on_workers_nor_on_the_start_and_take_no_random_state(take, alternate):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    overrides = REGIONS_ONLY if alternate == "regions" else ("DATALOADER.ALTERNATE", alternate)
    whole = [flat(b) for b in take(12, *overrides)]
    for start, workers in ((1, 0), (7, 1), (0, 2)):
        found = take(12 - start, *overrides, "DATALOADER.NUM_WORKERS", workers, start=start)
        assert [flat(b) for b in found] == whole[start:]
    assert torch.equal(torch.get_rng_state(), before)


def test_captions_and_mosaics_draw_different_images_each_once_an_epoch_grouped_by_aspect(take):
    found = take(12)  # an epoch of 24 pairs
    drawn = {source: [ids(b, source) for b in found] for source in ("captions", "mosaics")}
    assert sum(set(c) == set(m) for c, m in zip(drawn["captions"], drawn["mosaics"], strict=True)) <= 1
    assert sorted(i for pair in drawn["mosaics"] for i in pair) == list(range(1000, 1024))
    assert [ids(b, "mosaics") for b in take(5, seed=1)] != [ids(b, "mosaics") for b in take(5, seed=2)]
    for source in ("detection", "captions"):
        assert all(len({s["width"] > s["height"] for s in batch[source]}) == 1 for batch in found)
    mixed = take(14, "DATALOADER.ASPECT_RATIO_GROUPING", False)
    assert any(len({s["width"] > s["height"] for s in batch["captions"]}) == 2 for batch in mixed)


def test_images_without_boxes_are_filtered_if_asked(take):
    for filtered in (True, False):
        found = take(16, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", filtered)
        empty = {s["image_id"] for b in found for s in b["detection"] if len(s["instances"]) == 0}
        assert empty == (set() if filtered else {100})


@pytest.mark.parametrize(
    "filtered, side, left_out", [(True, 36, "1 of 7"), (False, 37, "2 of 8"), (True, 30, "0 of 7")]
)
def test_small_images_with_boxes_are_left_out_and_counted(take, caplog, filtered, side, left_out):
    """The shorter sides are 40, 40, 48, 30, 36, 50, 44, 52 px; pairs stay."""
    with caplog.at_level("INFO", "clim"):
        found = take(24, "DATALOADER.MIN_SIDE", side, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", filtered)
    seen = {i - 100 for b in found for i in ids(b, "detection")}
    assert seen == {i for i, size in enumerate(SIZES) if min(size) >= side} - ({0} if filtered else set())
    assert {i for b in found for i in ids(b, "captions")} == set(range(1000, 1024))
    assert [m for m in caplog.messages if "MIN_SIDE" in m] == [
        f"DATALOADER.MIN_SIDE {side} leaves out {left_out} images."
    ]


@pytest.mark.parametrize("alternate", [(), (1, 1, 2)])
def test_an_iteration_with_accumulation_has_batches_of_the_same_sources(take, alternate):
    """It starts where the batches of the earlier iterations end."""
    whole = take(24, "DATALOADER.ALTERNATE", alternate, "SOLVER.ACCUMULATE", 3)
    assert [flat(b) for b in take(9, "DATALOADER.ALTERNATE", alternate, "SOLVER.ACCUMULATE", 3, start=5)] == [
        flat(b) for b in whole[15:]
    ]
    sources = [tuple(counts(b)) for b in whole]
    assert all(len(set(sources[i : i + 3])) == 1 for i in range(0, 24, 3))
    assert len(set(sources)) == (3 if alternate else 1)


def over_ranks(take, monkeypatch, world, count, *overrides):
    """Batches of every rank."""
    monkeypatch.setattr(comm, "get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        yield take(count, *overrides)


def test_ranks_share_an_epoch_or_alternate_together(take, monkeypatch):
    found = over_ranks(take, monkeypatch, 3, 4, "DATALOADER.ASPECT_RATIO_GROUPING", False)
    assert sorted(i for b in sum(found, []) for i in ids(b, "captions")) == list(range(1000, 1024))
    found = over_ranks(take, monkeypatch, 2, 10, "DATALOADER.ALTERNATE", (1, 1), *NO_MOSAICS)
    first, second = ([set(counts(b)) for b in rank] for rank in found)
    assert first == second and {"detection"} in first and {"captions"} in first


def test_replaced_images_are_reported(take, make_photos, registered):
    records = make_photos([(40, 50)] * 4)
    records[2]["file_name"] += ".gone"
    found = take(4, "DATASETS.CAPTIONS", (registered(*records),))
    assert {s for b in found for s in b["skipped"]} == {(records[2]["file_name"], "missing")}
    assert all("skipped" not in s for b in found for source in STREAMS for s in b[source])


def test_partners_come_from_the_configured_index(take, pairs, tmp_path):
    rows = [[(i + 1) % 24, (i + 2) % 24, (i + 3) % 24] for i in range(24)]
    save_neighbours(tmp_path / "index.npy", np.array(rows), records=pairs, by="text", dataset="x")
    overrides = ("INPUT.MOSAIC.PARTNERS", str(tmp_path / "index.npy"), "INPUT.MOSAIC.GRIDS", [2])
    for workers in (0, 1):
        for batch in take(3, *overrides, "DATALOADER.NUM_WORKERS", workers):
            for sample in batch["mosaics"]:
                first, *others = (sample["tiles"].image_ids - 1000).tolist()
                assert sorted(others) == sorted(rows[first])


@pytest.fixture
def mixed(pairs, indexed, pair, registered):
    """Names of data sets: the first 12 pairs; 12 more as shards, of the same bytes; and all 24 as one list."""
    members = [
        (f"{r['image_id']}{suffix}", data)
        for r in pairs[12:]
        for suffix, data in ((".png", Path(r["file_name"]).read_bytes()), (".txt", r["captions"][0].encode()))
    ]
    shards = indexed({"a.tar": members[:10], "b.tar": members[10:]})
    one = [r | {"captions": r["captions"][:1], "tags": []} for r in pairs[12:]]
    DatasetCatalog.register("test_loader_shards", lambda: shards)
    yield (registered(*pairs[:12]), "test_loader_shards"), (registered(*pairs[:12], *one),)
    DatasetCatalog.remove("test_loader_shards")


def test_shards_beside_a_list_give_the_batches_of_one_list(take, mixed):
    """With any number of workers, resumed, and with neighbours as partners."""
    together, listed = mixed
    whole = [flat(b) for b in take(14, "DATASETS.CAPTIONS", listed)]
    for start, workers in ((0, 0), (5, 2)):
        found = take(14 - start, "DATASETS.CAPTIONS", together, "DATALOADER.NUM_WORKERS", workers, start=start)
        assert [flat(b) for b in found] == whole[start:]


def test_skipped_images_of_shards_are_named_and_an_index_of_partners_fits_both(take, mixed, tmp_path):
    together, listed = mixed
    records = caption_records(together)
    save_neighbours(tmp_path / "i.npy", np.arange(24)[:, None] ^ 1, records=records, by="text", dataset="x")
    shard = tmp_path / "shards" / "b.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    overrides = ("INPUT.MOSAIC.PARTNERS", str(tmp_path / "i.npy"), "INPUT.MOSAIC.GRIDS", [2])
    found = take(12, *overrides, "DATASETS.CAPTIONS", together)
    names = {name for b in found for name, _ in b["skipped"]}
    assert names == {records[i]["file_name"] for i in range(17, 24)}
    assert all("b.tar?" in name and name.endswith(".png") for name in names)
    assert [b["captions"] for b in take(2, *overrides, "DATASETS.CAPTIONS", listed)]  # the index fits


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([*NO_BOXES, *NO_CAPTIONS, *NO_MOSAICS], "nothing to train on"),
        (["DATALOADER.ALTERNATE", (1, 1)], "give one weight for each of detection, captions, mosaics"),
        (["DATASETS.CAPTIONS", ()], r"DATASETS.CAPTIONS = \(\) holds no image"),
        (["DATASETS.CAPTIONS", ("test_loader_bare",)], "DATASETS.CAPTIONS .* without captions"),
        (["DATASETS.TRAIN", ("test_loader_pairs",)], "DATASETS.TRAIN .* without annotations"),
        (["DATALOADER.MIN_SIDE", 61], "DATASETS.TRAIN .* holds no image with annotations"),
        (["DATASETS.TRAIN", ("test_loader_empty",)], "DATASETS.TRAIN .* holds no image with annotations"),
        ([*REGIONS_ONLY, "DATASETS.REGIONS", ()], r"DATASETS.REGIONS = \(\) holds no image"),
    ],
)
def test_mistakes_name_the_key(take, overrides, message):
    with pytest.raises(UserError, match=message):
        take(1, *overrides)


def test_a_worker_never_collects_the_objects_of_the_main_process(monkeypatch):
    monkeypatch.setattr(loader.cv2, "setNumThreads", lambda count: None)
    monkeypatch.setattr(loader.signal, "signal", lambda *_: None)  # later processes of the tests would inherit it
    try:
        loader.start_worker(0)
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


def test_a_program_that_holds_an_iterator_until_its_end_does_not_wait_for_the_workers(load_cfg, monkeypatch):
    at_end: list = []
    monkeypatch.setattr(loader.atexit, "register", lambda *call: at_end.append(call))
    cfg = load_cfg("mini/detic_clim.yaml", *SMALL, "DATALOADER.NUM_WORKERS", 1)
    held = build_train_loader(cfg, seed=0)
    (worker,) = held._workers
    ((end, held_weakly),) = at_end
    assert worker.is_alive()
    end(held_weakly)
    assert not worker.is_alive()
    del held
    end(held_weakly)


# ---- streams


def first(stream, count):
    return list(islice(stream, count))


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 13), st.integers(1, 5), st.integers(0, 99))
def test_the_ranks_together_draw_every_index_once_an_epoch(length, world, seed):
    epochs = 3
    ranks = [draws(length, seed=seed, stream=1, rank=r, world=world) for r in range(world)]
    per_rank = -(-epochs * length // world)
    together = [draw for group in zip(*(first(r, per_rank) for r in ranks), strict=True) for draw in group]
    assert together == first(draws(length, seed=seed, stream=1), per_rank * world)  # one stream, dealt out
    together = together[: epochs * length]
    assert [epoch for epoch, _ in together] == [e for e in range(epochs) for _ in range(length)]
    for epoch in range(epochs):
        assert sorted(i for e, i in together if e == epoch) == list(range(length))


def test_epochs_sources_and_seeds_are_shuffled_differently():
    def order(seed, stream, epoch):
        return tuple(i for e, i in first(draws(50, seed=seed, stream=stream), 150) if e == epoch)

    orders = {order(seed, stream, epoch) for seed in (0, 1) for stream in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 18
    drawn = first(draws(7, seed=0, stream=0), 12)
    assert first(batches(iter(drawn), 3), 4) == [drawn[i : i + 3] for i in range(0, 12, 3)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=15), st.integers(1, 4), st.integers(0, 9))
def test_aspect_groups_hold_one_kind_and_lose_nothing(landscape, size, seed):
    drawn = first(draws(len(landscape), seed=seed, stream=0), 60)
    grouped = list(batches(iter(drawn), size, landscape=landscape))
    assert all(len(batch) == size and len({landscape[i] for _, i in batch}) == 1 for batch in grouped)
    waiting = Counter(drawn) - Counter(draw for batch in grouped for draw in batch)
    for kind in (True, False):
        # Only an incomplete batch of each kind is still waiting; the others are in the order drawn.
        assert sum(n for (_, i), n in waiting.items() if landscape[i] is kind) < size
        found = [draw for batch in grouped for draw in batch if landscape[draw[1]] is kind]
        assert found == [draw for draw in drawn if landscape[draw[1]] is kind][: len(found)]


# ---- repeat factors


def test_factors_are_detectron2s_of_the_loaded_images(load_cfg):
    """Class 0 is on all of 8 images, class 1 on two, class 2 on one: 1, sqrt(.5 / .25), sqrt(.5 / .125)."""
    shown = [{0}, {0, 1}, {0, 1, 2}, {0}, {0}, {0}, {0}, {0}]
    records = [{"annotations": [{"category_id": c} for c in sorted(classes)] * 2} for classes in shown]
    on = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.5)
    cfg = load_cfg("mini/detic.yaml", *on)
    assert np.allclose(loader.repeat_factors(cfg, records), [1, 2**0.5, 2, *[1] * 5])
    cfg = load_cfg("mini/detic.yaml", *on, "DATALOADER.REPEAT_ROUND_UP", True)
    assert loader.repeat_factors(cfg, records).tolist() == [1, 2, 2, *[1] * 5]
    assert loader.repeat_factors(cfg, [records[0], {"annotations": []}]).tolist() == [1, 1]
    assert loader.repeat_factors(load_cfg("mini/detic.yaml"), records) is None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1, 4), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 99))
def test_ranks_share_a_repeated_epoch_with_the_whole_part_always_and_the_rest_by_chance(factors, world, seed):
    factors, count = np.array(factors), len(factors)

    def stream(rank=0, world=1):
        return draws(count, seed=seed, stream=0, rank=rank, world=world, factors=factors)

    alone = first(stream(), 200)
    dealt = [draw for group in zip(*(first(stream(r, world), 40) for r in range(world)), strict=True) for draw in group]
    assert dealt == alone[: 40 * world]
    for epoch in range(alone[-1][0]):  # whole epochs
        copies = [i for e, i in alone if e == epoch]
        assert len(set(copies)) == len(copies)  # each copy draws its own random numbers
        times = np.bincount([i % count for i in copies], minlength=count)
        assert ((times == np.floor(factors)) | (times == np.floor(factors) + 1)).all()
        assert sorted(copies) == sorted(i + k * count for i in range(count) for k in range(times[i]))


def test_the_mean_number_of_copies_is_the_factor_and_factors_of_one_change_no_order():
    factors, rng = np.array([1.0, 1.25, 2.5, 3.0]), np.random.default_rng(0)
    times = sum(np.bincount(loader.repeated(factors, rng) % 4, minlength=4) for _ in range(4000)) / 4000
    assert np.abs(times - factors).max() < 0.03
    ones = first(draws(9, seed=4, stream=0, factors=np.ones(9)), 90)
    assert [sorted(i for e, i in ones if e == epoch) for epoch in range(10)] == [list(range(9))] * 10


def test_copies_of_a_rare_image_differ_and_a_resumed_run_repeats_them(take):
    rare = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.5,
            "INPUT.LSJ.STYLE", "mmdet", "INPUT.LSJ.SIZE", 48, *NO_CAPTIONS, *NO_MOSAICS)  # fmt: skip
    whole = [flat(b) for b in take(16, *rare)]
    assert [flat(b) for b in take(9, *rare, "DATALOADER.NUM_WORKERS", 1, start=7)] == whole[7:]
    assert Counter(i for b in take(16, *rare) for i in ids(b, "detection")).most_common()[-1][1] > 1
    assert len({sample["image"] for b in whole for sample in b["detection"]}) > 28  # of 32 from 7 images


def test_masks_that_are_missing_or_of_another_kind_are_refused(load_cfg):
    cfg = load_cfg("mini/detic.yaml", "MODEL.MASK_ON", True)
    unmasked = 'boxes without masks: set MODEL.MASK_ON .* "lvis"'
    for mask, message in ((None, unmasked), ({}, "run lengths: set INPUT.MASK_FORMAT")):
        with pytest.raises(UserError, match=message):
            loader.check_masks(cfg, [{"annotations": [{"segmentation": mask}]}])
    cfg.INPUT.MASK_FORMAT = "bitmask"
    loader.check_masks(cfg, [{"annotations": [{"segmentation": {}}, {"segmentation": [[1, 2]]}]}, {"annotations": []}])


def sources():
    landscape = np.random.default_rng(0).random(11) < 0.5
    return {
        "detection": batches(draws(11, seed=5, stream=0), 2, landscape=landscape),
        "captions": batches(draws(7, seed=5, stream=1), 3),
    }


def test_joint_and_alternating_sources_go_through_their_own_streams():
    joint = [key for batch in first(loader.joint_batches(sources()), 20) for key in batch]
    alternating = first(loader.alternating_batches(sources(), weights=(1, 1), seed=5), 60)
    assert all(len({name for name, _, _ in keys}) == 1 for keys in alternating)
    for name in ("detection", "captions"):
        own = [draw for batch in first(sources()[name], 20) for draw in batch]
        assert [(epoch, i) for n, epoch, i in joint if n == name] == own
        own = [[(e, i) for _, e, i in keys] for keys in alternating if keys[0][0] == name]
        assert len(own) > 15 and own == first(sources()[name], len(own))


def test_alternation_follows_weights_and_seed():
    def names(count, *, weights=(1, 1), seed=5):
        return [keys[0][0] for keys in first(loader.alternating_batches(sources(), weights=weights, seed=seed), count)]

    assert abs(names(1000, weights=(1, 4)).count("captions") / 1000 - 0.8) < 0.05
    assert set(names(50, weights=(1, 0))) == {"detection"}
    assert names(50, seed=1) != names(50, seed=2)


# ---- test

LOST, BLANK = Skipped("a.jpg", "missing"), Skipped("b.jpg", "no region left")


def test_skipped_images_are_reported_in_every_pass_before_their_batch_and_left_out():
    skipped = []
    found = loader.SkippingLoader(
        [[{"id": 1}, LOST], [BLANK], [{"id": 2}], [LOST, {"id": 3}], []], on_skip=skipped.append
    )
    assert next(iter(found)) == [{"id": 1}] and skipped == [LOST]
    skipped.clear()
    for count in (1, 2):
        assert list(found) == [[{"id": 1}], [{"id": 2}], [{"id": 3}]]
        assert skipped == [LOST, BLANK, LOST] * count
    assert len(found) == 5  # it is not known beforehand what is skipped


def test_detection_goes_on_without_damaged_images(make_photos, load_cfg, registered):
    records = make_photos([(60, 40), (50, 70), (64, 64)], ext="jpg")
    damaged = Path(records[1]["file_name"])
    damaged.write_bytes(damaged.read_bytes()[:200])
    records[2]["width"] += 1  # the file is another image than the record's
    skipped, cfg = [], load_cfg("mini/detic.yaml", "DATALOADER.NUM_WORKERS", 0)
    found = loader.build_detection_loader(cfg, registered(*records), on_skip=skipped.append)
    assert [sample["image_id"] for batch in found for sample in batch] == [records[0]["image_id"]]
    assert [file_name for file_name, _ in skipped] == [record["file_name"] for record in records[1:]]
