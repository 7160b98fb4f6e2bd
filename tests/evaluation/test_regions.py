"""RegionClassificationEvaluator against a slow count, region by region; ties, gaps, files, two processes.

Run as a script (`test_regions.py RANK FOLDER`) this file is one process of the two-process test.
"""

import json
import logging
import math
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from hypothesis import given
from hypothesis import strategies as st

from clim.data.loader import NO_REGION, Skipped
from clim.errors import UserError
from clim.evaluation import RegionClassificationEvaluator
from clim.evaluation.regions import averages, class_accuracies, true_ranks
from clim.processes import leave_group

THINGS = ["cat", "apple", "person", "knife", "zebra", "sink", "bus", "cake"]
STUFF = ["sky", "sand", "road"]
K = len(THINGS) + len(STUFF)


def register(name, *, stuff=True, **more):
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(thing_classes=THINGS, **({"stuff_classes": STUFF} if stuff else {}), **more)
    return name


def make_images(seed=0, *, num_images=12, variants=("boxes",), num_classes=K):
    """[(image id, classes (R,), {variant: scores (R, K)})] of random scores; "knife" and "sand" never occur."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor([i for i in range(num_classes) if i not in (3, 9)])
    images = []
    for image_id in range(num_images):
        count = int(torch.randint(1, 9, (), generator=generator))
        classes = present[torch.randint(len(present), (count,), generator=generator)]
        scores = {v: torch.randint(0, 40, (count, num_classes), generator=generator) / 40 for v in variants}
        images.append((image_id, classes, scores))
    return images


def feed(evaluator, images):
    for image_id, classes, scores in images:
        evaluator.process([{"image_id": image_id, "gt_classes": classes}], [{"region_scores": scores}])


def score(name, images, **options):
    evaluator = RegionClassificationEvaluator(name, **options)
    feed(evaluator, images)
    return evaluator.evaluate()["regions"]


def slow_rank(row, wanted):
    """Place of class ``wanted``: classes sorted by score, the lower class first where they tie."""
    return sorted(range(len(row)), key=lambda k: (-row[k], k)).index(wanted)


def slow_figures(images, variant, *, members, num_classes, top):
    hits = {}
    for _, classes, scores in images:
        for wanted, row in zip(classes.tolist(), scores[variant].tolist(), strict=True):
            if wanted in members:
                hits.setdefault(wanted, []).append(slow_rank(row[:num_classes], wanted) < top)
    by_class = {k: sum(h) / len(h) for k, h in hits.items()}
    regions = [hit for h in hits.values() for hit in h]
    return 100 * sum(by_class.values()) / len(by_class), 100 * sum(regions) / len(regions)


def test_every_figure_equals_a_slow_count():
    images = make_images(variants=("boxes", "crops"))
    found = score(register("regions_slow"), images, variants=("boxes", "crops"))
    things, stuff = set(range(len(THINGS))), set(range(len(THINGS), K))
    groups = {"": (things | stuff, K), "_things": (things, K), "_stuff": (stuff, K), "_8way": (things, 8)}
    expected = {}
    for prefix, metric, suffix in product(("", "crops."), ("Top1", "Top5"), groups):
        (members, num_classes), top = groups[suffix], int(metric[-1])
        variant = prefix.strip(".") or "boxes"
        macro, micro = slow_figures(images, variant, members=members, num_classes=num_classes, top=top)
        expected |= {f"{prefix}{metric}_macro{suffix}": macro, f"{prefix}{metric}_micro{suffix}": micro}
    assert found == pytest.approx(expected)
    assert len(set(found.values())) > 20  # no figure stands for another


def test_words_of_another_order_and_more_words_change_no_figure():
    images, name = make_images(2), register("regions_words")
    order = torch.randperm(K + 2, generator=torch.Generator().manual_seed(0))  # of the set's classes and two others
    mixed = [(i, c, {"boxes": torch.cat([s["boxes"], torch.ones(len(c), 2)], 1)[:, order]}) for i, c, s in images]
    assert score(name, mixed, indices=order.argsort()[:K].tolist()) == score(name, images)


def test_things_alone_have_one_group_and_those_of_their_split():
    images = make_images(3, num_classes=8)
    found = score(register("regions_things", stuff=False), images)
    assert list(found) == ["Top1_macro", "Top1_micro", "Top5_macro", "Top5_micro"]
    split = {"base_classes": ["cat", "bus"], "novel_classes": ["sink"]}
    found = score(register("regions_split", stuff=False, **split), images)
    assert len(found) == 4 * 3
    for metric, top in (("Top1", 1), ("Top5", 5)):
        for group, members in (("", set(range(8))), ("_base", {0, 6}), ("_novel", {5})):
            macro, micro = slow_figures(images, "boxes", members=members, num_classes=8, top=top)
            assert found[f"{metric}_macro{group}"] == pytest.approx(macro)
            assert found[f"{metric}_micro{group}"] == pytest.approx(micro)


@given(st.data())
def test_ranks_are_places_in_a_sorted_list(data):
    num_classes, count = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 6))
    row = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 2.0]), min_size=num_classes, max_size=num_classes)
    rows = data.draw(st.lists(row, min_size=count, max_size=count))
    classes = data.draw(st.lists(st.integers(0, num_classes - 1), min_size=count, max_size=count))
    ranks = true_ranks(torch.tensor(rows).view(count, num_classes), torch.tensor(classes, dtype=torch.int64))
    assert ranks.tolist() == [slow_rank(r, c) for r, c in zip(rows, classes, strict=True)]


def test_nan_scores_and_averages_by_hand():
    scores = torch.tensor([[math.nan, 0.1, 0.2], [math.nan, 0.1, 0.2], [math.nan] * 3])
    assert true_ranks(scores, torch.tensor([0, 2, 1])).tolist() == [3, 0, 3]
    assert true_ranks(scores[:, :2], torch.tensor([2, 1, 2])).tolist() == [2, 0, 2]
    correct = np.array([True, False, True, True, False])
    classes = np.array([4, 4, 4, 1, 2])
    np.testing.assert_allclose(class_accuracies(correct, classes, num_classes=5), [np.nan, 100, 0, np.nan, 200 / 3])
    assert averages(correct, classes, members=[0, 1, 4]) == pytest.approx({"macro": 250 / 3, "micro": 75})
    assert averages(correct, classes, members=[2]) == {"macro": 0, "micro": 0}
    nothing = averages(correct, classes, members=[0, 3])
    assert math.isnan(nothing["macro"]) and math.isnan(nothing["micro"])


def test_the_report_on_disk(tmp_path, caplog):
    images = make_images(1)
    evaluator = RegionClassificationEvaluator(register("regions_report"), output_dir=tmp_path / "new")
    for skipped in (Skipped("b.jpg", "missing"), Skipped("a.jpg", "truncated"), Skipped("c.jpg", NO_REGION)):
        evaluator.skip(skipped)
    with pytest.raises(UserError, match="No image of 'regions_report' could be read, the first is a.jpg: truncated"):
        evaluator.evaluate()
    feed(evaluator, images)
    with caplog.at_level(logging.INFO):
        results = evaluator.evaluate()
        print_csv_format(results)
    assert "a.jpg (truncated)" in caplog.text and "b.jpg (missing)" in caplog.text and "c.jpg" not in caplog.text
    assert "1 images have none, 2 could not be read" in caplog.text
    assert "| cat" in caplog.text and "Top5_macro_things" in caplog.text
    report = json.loads((tmp_path / "new/region_results.json").read_text())
    assert report["summary"] == results["regions"]
    assert report["unreadable"] == [["a.jpg", "truncated"], ["b.jpg", "missing"]]
    counts = [report[f"num_{key}"] for key in ("pictures", "regions", "pictures_without_regions")]
    assert counts == [12, sum(len(classes) for _, classes, _ in images), 1]
    rows = report["per_class"]
    assert [row["class"] for row in rows] == THINGS + STUFF
    assert [row["kind"] for row in rows] == ["thing"] * 8 + ["stuff"] * 3
    assert sum(row["num_regions"] for row in rows) == counts[1]
    assert rows[3] == {"class": "knife", "kind": "thing", "num_regions": 0, "Top1": None, "Top5": None}
    seen = [row["Top1"] for row in rows if row["num_regions"]]
    assert sum(seen) / len(seen) == pytest.approx(report["summary"]["Top1_macro"])


def test_nothing_seen_has_no_figures(tmp_path):
    name = register("regions_none")
    evaluator = RegionClassificationEvaluator(name, output_dir=tmp_path)
    found = evaluator.evaluate()["regions"]
    assert len(found) == 16 and all(math.isnan(value) for value in found.values())
    report = json.loads((tmp_path / "region_results.json").read_text())
    assert set(report["summary"].values()) == {None} and report["num_regions"] == 0
    feed(evaluator, make_images())
    evaluator.skip(Skipped("a.jpg", "missing"))
    evaluator.reset()
    evaluator.evaluate()
    assert json.loads((tmp_path / "region_results.json").read_text()) == report


def test_mistakes_are_found():
    name = register("regions_wrong")
    for variants in ((), ("boxes", "rois"), ("mask",)):
        with pytest.raises(UserError, match="TEST.REGIONS is .* boxes, masks, crops"):
            RegionClassificationEvaluator(name, variants=variants)
    ((_, classes, scores),) = make_images(num_images=1)
    evaluator, boxes = RegionClassificationEvaluator(name, variants=("masks",)), scores["boxes"]
    wrong = (scores, {"masks": boxes[:, :-1]}, {"masks": boxes[1:]})
    for output in ({"instances": None}, *({"region_scores": found} for found in wrong)):
        with pytest.raises(UserError, match=r"needs scores \(\d, 11\) of regions x classes for masks"):
            evaluator.process([{"image_id": 0, "gt_classes": classes}], [output])


def test_two_processes_equal_one(tmp_path, run_two):
    evaluator = RegionClassificationEvaluator(register("regions_two"), output_dir=tmp_path / "one")
    feed(evaluator, make_images(2))
    evaluator.skip(Skipped("a.jpg", "missing"))
    single = evaluator.evaluate()
    run_two(__file__, tmp_path)
    assert json.loads((tmp_path / "rank0.json").read_text()) == single
    assert json.loads((tmp_path / "rank1.json").read_text()) == {}
    one, two = (tmp_path / folder / "region_results.json" for folder in ("one", "two"))
    assert two.read_text() == one.read_text()


def one_of_two_processes(rank, folder):
    """Rank 0 sees the even images, rank 1 the odd ones and, as a padding sampler would, image 2 again."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    evaluator = RegionClassificationEvaluator(register("regions_two"), output_dir=folder / "two")
    images = make_images(2)
    feed(evaluator, images[rank::2] + images[2:3] * rank)
    if rank == 1:
        evaluator.skip(Skipped("a.jpg", "missing"))
    (folder / f"rank{rank}.json").write_text(json.dumps(evaluator.evaluate()))
    comm.synchronize()  # an early end of one process can abort the other
    leave_group()


if __name__ == "__main__":
    one_of_two_processes(int(sys.argv[1]), Path(sys.argv[2]))
