"""precision_recall against pycocotools and cases counted by hand, also where faster-coco-eval alone would fail."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.errors import UserError
from clim.evaluation.coco_api import precision_recall


def random_world(seed, *, num_images=20, num_categories=6):
    """Ground truth with crowds, empty images and an absent category; tied scores, jittered boxes."""
    rng = np.random.default_rng(seed)
    categories = [3 * c + 2 for c in range(num_categories)]
    truth, found = [], []
    for image in range(100, 100 + num_images):
        for category in categories[:-1]:
            for _ in range(rng.integers(0, 3)):
                box = np.r_[rng.uniform(0, 60, 2), rng.uniform(4, 40, 2)]
                crowd = int(rng.random() < 0.2)
                truth.append(annotation(image, category, box.tolist(), id=len(truth) + 1, iscrowd=crowd))
                if rng.random() < 0.7:
                    found.append(detection(image, category, (box + rng.normal(0, 2, 4)).clip(min=1).tolist(), 0.0))
        for _ in range(rng.integers(0, 6)):
            box = np.r_[rng.uniform(0, 60, 2), rng.uniform(4, 40, 2)]
            found.append(detection(image, int(rng.choice(categories)), box.tolist(), 0.0))
    for found_one in found:
        found_one["score"] = float(rng.integers(1, 20) / 20)
    return dataset(truth, images=range(100, 100 + num_images), categories=categories), found


def annotation(image, category, box, *, id=1, iscrowd=0):
    return detection(image, category, box, 1.0) | {"id": id, "area": box[2] * box[3], "iscrowd": iscrowd}


def detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def dataset(annotations, *, images, categories):
    return {
        "images": [{"id": i, "height": 100, "width": 100} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": annotations,
    }


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_detections_give_the_official_numbers(seed, official):
    ground_truth, detections = random_world(seed)
    precision, recall = official(ground_truth, detections)
    result = precision_recall(ground_truth, detections)
    np.testing.assert_allclose(result.precision, precision, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.recall, recall, rtol=0, atol=1e-9)


def test_average_precision_by_hand():
    # Two objects; hit, miss, hit: precision 1 up to recall 1/2 (51 of 101 points), 2/3 beyond.
    first, second, nowhere = [0, 0, 10, 10], [50, 50, 10, 10], [80, 0, 10, 10]
    ground_truth = dataset(
        [annotation(1, 7, first, id=1), annotation(1, 7, second, id=2)], images=[1], categories=[7, 9]
    )
    detections = [detection(1, 7, first, 0.9), detection(1, 7, nowhere, 0.8), detection(1, 7, second, 0.7)]
    result = precision_recall(ground_truth, detections)
    expected = 100 * (51 + 50 * 2 / 3) / 101
    assert result.by_class()[7] == pytest.approx({"AP50": expected, "AP": expected, "AR": 100}, abs=1e-10)
    assert np.isnan(list(result.by_class()[9].values())).all()


def test_crowds_neither_hit_nor_miss():
    crowd, single = [0, 0, 50, 50], [60, 60, 10, 10]
    ground_truth = dataset(
        [
            annotation(1, 1, crowd, id=1, iscrowd=1),
            annotation(1, 1, single, id=2),
            annotation(1, 2, crowd, id=3, iscrowd=1),
        ],
        images=[1],
        categories=[1, 2],
    )
    inside = [[0, 0, 10, 10], [20, 20, 10, 10]]  # two detections may fall in one crowd
    detections = [detection(1, 1, box, 0.9) for box in inside] + [detection(1, 1, single, 0.5)]
    result = precision_recall(ground_truth, detections)
    assert result.by_class()[1]["AP"] == pytest.approx(100, abs=1e-10)
    assert np.isnan(result.by_class()[2]["AP"]), "a class of crowds only has nothing to find"


def test_no_detections_score_zero():
    ground_truth, _ = random_world(0)
    present = {a["category_id"] for a in ground_truth["annotations"] if not a["iscrowd"]}
    result = precision_recall(ground_truth, [])
    for k, category in enumerate(result.category_ids):
        expected = 0.0 if category in present else -1.0
        assert (result.precision[:, :, k] == expected).all() and (result.recall[:, k] == expected).all()
    assert np.isnan(result.by_class()[17]["AP"]), "the last category has no ground truth"


def test_empty_choices_are_empty_not_everything():
    ground_truth, detections = random_world(1)
    no_images = precision_recall(ground_truth, detections, image_ids=[])
    assert no_images.precision.shape == (10, 101, 6) and (no_images.precision == -1).all()
    no_categories = precision_recall(ground_truth, detections, category_ids=[])
    assert no_categories.precision.shape == (10, 101, 0) and no_categories.recall.shape == (10, 0)
    assert no_categories.by_class() == {}


def test_annotation_id_zero_is_an_annotation():
    box = [0, 0, 10, 10]
    ground_truth = dataset([annotation(1, 1, box, id=0)], images=[1], categories=[1])
    result = precision_recall(ground_truth, [detection(1, 1, box, 0.5)])
    assert result.by_class()[1]["AP"] == pytest.approx(100, abs=1e-10)


def test_max_dets_is_per_image_and_category():
    box, nowhere = [0, 0, 10, 10], [80, 80, 5, 5]
    ground_truth = dataset([annotation(1, 1, box)], images=[1], categories=[1, 2])
    detections = [detection(1, 1, nowhere, 0.9), detection(1, 1, nowhere, 0.8), detection(1, 1, box, 0.7)]
    others = [detection(1, 2, nowhere, 1.0)] * 5

    def score(max_dets):
        result = precision_recall(ground_truth, detections + others, max_dets=max_dets)
        return result.by_class()[1]["AP50"]

    assert score(2) == 0.0
    assert score(3) == pytest.approx(100 / 3, abs=1e-10)


def test_choosing_images_and_categories_equals_a_smaller_file(official):
    ground_truth, detections = random_world(2)
    images, categories = set(range(100, 111)), {2, 8, 17}
    choice = {"image_ids": images, "category_ids": categories}
    chosen = precision_recall(ground_truth, detections, **choice)
    kept = [a for a in ground_truth["annotations"] if a["image_id"] in images]
    kept = [a for a in kept if a["category_id"] in categories]
    smaller = dataset(kept, images=sorted(images), categories=sorted(categories))
    precision, recall = official(smaller, [d for d in detections if d["image_id"] in images])
    np.testing.assert_allclose(chosen.precision, precision, rtol=0, atol=1e-9)
    np.testing.assert_allclose(chosen.recall, recall, rtol=0, atol=1e-9)


def test_inputs_stay_as_they_were():
    ground_truth, detections = random_world(3)
    before = copy.deepcopy((ground_truth, detections))
    precision_recall(ground_truth, detections)
    assert (ground_truth, detections) == before


def test_a_detection_of_an_unknown_image_is_refused():
    ground_truth, _ = random_world(4)
    with pytest.raises(UserError, match="image 5, which is not in the ground truth"):
        precision_recall(ground_truth, [detection(5, 2, [0, 0, 1, 1], 0.5)])
