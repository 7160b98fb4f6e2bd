"""Joint batches: what each iteration holds, the same with any number of workers, resumed and over ranks."""

from itertools import islice

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm

from build_neighbours import save_neighbours
from clim.data import loader as loader_module
from clim.data.loader import build_train_loader
from clim.errors import UserError

SIZES = [(40, 60), (60, 40), (48, 48), (30, 64), (64, 36), (50, 50), (44, 60), (60, 52)]
SMALL = [
    "DATASETS.TRAIN", ("test_loader_boxes",), "DATASETS.CAPTIONS", ("test_loader_pairs",),
    "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MAX_SIZE_TRAIN", 48,
    "INPUT.CAPTION.SHORT_SIDE", 24, "INPUT.CAPTION.LONG_SIDE", 40, "INPUT.MOSAIC.SIZE", 48,
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def datasets(make_photos):
    boxes, pairs = make_photos(SIZES), make_photos(SIZES * 3, first_id=1000)
    for i, record in enumerate(boxes):
        record["annotations"] = [
            {"bbox": [4, 4, 20, 16 + i], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i, "iscrowd": 0}
        ] * (i > 0)  # the first picture has no box
    DatasetCatalog.register("test_loader_boxes", lambda: boxes)
    DatasetCatalog.register("test_loader_pairs", lambda: pairs)
    yield pairs
    DatasetCatalog.remove("test_loader_boxes")
    DatasetCatalog.remove("test_loader_pairs")


@pytest.fixture
def take(load_cfg):
    """``take(count, "KEY", value, …, start=0)``: the first batches of a loader."""

    def taken(count, *overrides, start=0, seed=3):
        cfg = load_cfg("mini/detic_clim.yaml", *SMALL, *overrides)
        return list(islice(build_train_loader(cfg, seed=seed, start_iter=start), count))

    return taken


def flat(batch):
    """Everything in a batch as plain values and bytes, comparable with ==."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        if hasattr(value, "get_fields"):
            fields = value.get_fields()
            return plain(fields["gt_boxes"].tensor), plain(fields["gt_classes"]), value.image_size
        return plain(vars(value)) if hasattr(value, "__dict__") else value

    return plain(batch)


def ids(batch, source):
    if source == "detection":
        return [s["image_id"] for s in batch[source]]
    return [int(s["tiles"].image_ids[0]) for s in batch[source]]


def test_every_iteration_holds_all_sources(take):
    for batch in take(6):
        assert {k: len(v) for k, v in batch.items() if k != "skipped"} == {
            "detection": 2,
            "captions": 2,
            "mosaics": 2,
            "regions": 0,
        }
        assert batch["skipped"] == []
        assert all(len(s["tiles"]) == 1 for s in batch["captions"])
        assert all(len(s["tiles"]) in (4, 9, 16) for s in batch["mosaics"])
        assert all(s["image"].shape == (3, 48, 48) for s in batch["mosaics"])
        assert all(max(s["image"].shape[1:]) <= 40 for s in batch["captions"])
        assert all({"image", "instances", "height", "width", "image_id"} <= set(s) for s in batch["detection"])


@pytest.mark.parametrize("alternate", [(), (1, 1, 2)])
def test_batches_do_not_depend_on_the_number_of_workers(take, alternate):
    expected = [flat(b) for b in take(5, "DATALOADER.ALTERNATE", alternate)]
    for workers in (1, 2):
        batches = take(5, "DATALOADER.ALTERNATE", alternate, "DATALOADER.NUM_WORKERS", workers)
        assert [flat(b) for b in batches] == expected


@pytest.mark.parametrize("alternate", [(), (1, 1, 2)])
def test_a_resumed_loader_continues(take, alternate):
    whole = [flat(b) for b in take(12, "DATALOADER.ALTERNATE", alternate)]
    for start in (1, 7):
        resumed = take(12 - start, "DATALOADER.ALTERNATE", alternate, start=start)
        assert [flat(b) for b in resumed] == whole[start:]


def test_the_loader_leaves_the_random_states_alone(take):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    take(2)
    take(2, "DATALOADER.NUM_WORKERS", 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_captions_and_mosaics_draw_different_pictures(take):
    batches = take(12)  # an epoch of 24 pairs
    drawn = {source: [ids(b, source) for b in batches] for source in ("captions", "mosaics")}
    same = sum(set(c) == set(m) for c, m in zip(drawn["captions"], drawn["mosaics"], strict=True))
    assert same <= 1
    assert sorted(i for pair in drawn["mosaics"] for i in pair) == list(range(1000, 1024))  # each once an epoch


def test_seeds_differ(take):
    assert [ids(b, "mosaics") for b in take(5, seed=1)] != [ids(b, "mosaics") for b in take(5, seed=2)]


def test_aspect_groups(take):
    batches = take(14)
    for source in ("detection", "captions"):
        for batch in batches:
            assert len({s["width"] > s["height"] for s in batch[source]}) == 1
    mixed = take(14, "DATALOADER.ASPECT_RATIO_GROUPING", False)
    assert any(len({s["width"] > s["height"] for s in batch["captions"]}) == 2 for batch in mixed)


def test_pictures_without_boxes_are_filtered_if_asked(take):
    def empty(filtered):
        batches = take(16, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", filtered)
        return [s for b in batches for s in b["detection"] if len(s["instances"]) == 0]

    assert not empty(True)
    assert {s["image_id"] for s in empty(False)} == {100}


def test_ranks_share_an_epoch(take, monkeypatch):
    no_groups = ("DATALOADER.ASPECT_RATIO_GROUPING", False)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    seen = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        seen += [i for b in take(4, *no_groups) for i in ids(b, "captions")]
    assert sorted(seen) == list(range(1000, 1024))


def test_alternating_holds_one_source_the_same_on_all_ranks(take, monkeypatch):
    overrides = ("DATALOADER.ALTERNATE", (1, 1), "DATALOADER.MOSAICS_PER_GPU", 0)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    kinds = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        batches = take(10, *overrides)
        assert all(sum(bool(b[s]) for s in loader_module.STREAMS) == 1 for b in batches)
        kinds.append([bool(b["detection"]) for b in batches])
    assert kinds[0] == kinds[1] and len(set(kinds[0])) == 2


def test_only_what_is_asked_for(take):
    batches = take(2, "DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0)
    assert all(b["captions"] == [] and b["mosaics"] == [] and len(b["detection"]) == 2 for b in batches)
    batches = take(2, "DATALOADER.DETECTION_PER_GPU", 0, "DATASETS.TRAIN", ("no_such_set",))
    assert all(b["detection"] == [] and len(b["captions"]) == 2 for b in batches)


def test_replaced_pictures_are_reported(take, make_photos):
    records = make_photos([(40, 50)] * 4)
    records[2]["file_name"] += ".gone"
    DatasetCatalog.register("test_loader_broken", lambda: records)
    try:
        batches = take(4, "DATASETS.CAPTIONS", ("test_loader_broken",))
    finally:
        DatasetCatalog.remove("test_loader_broken")
    assert {s for b in batches for s in b["skipped"]} == {(records[2]["file_name"], "missing")}
    assert all("skipped" not in s for b in batches for source in loader_module.STREAMS for s in b[source])


def test_partners_come_from_the_configured_index(take, datasets, tmp_path):
    rows = [[(i + 1) % 24, (i + 2) % 24, (i + 3) % 24] for i in range(24)]
    path = tmp_path / "index.npy"
    save_neighbours(path, torch.tensor(rows).numpy(), records=datasets, by="text", dataset="x")
    for workers in (0, 1):
        for batch in take(
            3, "INPUT.MOSAIC.PARTNERS", str(path), "INPUT.MOSAIC.GRIDS", [2], "DATALOADER.NUM_WORKERS", workers
        ):
            for sample in batch["mosaics"]:
                first, *others = (sample["tiles"].image_ids - 1000).tolist()
                assert sorted(others) == sorted(rows[first])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["DATALOADER.DETECTION_PER_GPU", 0, "DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0],
            "nothing to train on",
        ),
        (["DATALOADER.ALTERNATE", (1, 1)], "2 weights for 3 sources"),
        (["DATASETS.CAPTIONS", ()], "no image with a caption"),
    ],
)
def test_mistakes_are_told(take, overrides, message):
    with pytest.raises(UserError, match=message):
        take(1, *overrides)
