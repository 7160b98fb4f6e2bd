"""A shortlist gives what a search among all pairs gives: boxes, scores, classes, regions, order, all to the bit."""

from unittest import mock

import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from clim.modeling import shortlist

SIZE = (60, 90)


def random_image(seed, regions, classes, *, levels=0, box_step=0, own_boxes=False, damaged=0):
    """Boxes and scores with ties: scores on about ``levels`` values, corners on multiples of ``box_step``; 0: any."""
    generator = torch.Generator().manual_seed(seed)
    own = classes if own_boxes else 1
    count = regions * own
    corner = torch.rand(count, 2, generator=generator) * 100 - 10
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 40], dim=1)
    boxes = ((boxes / box_step).round() * box_step if box_step else boxes).view(regions, 4 * own)
    scores = torch.randn(regions, classes + 1, generator=generator)
    scores = (scores * levels / 6).round() if levels else scores
    for row, value in zip(range(damaged), (float("nan"), float("inf"), -float("inf")), strict=False):
        (scores if row % 2 else boxes)[row, 0] = value
    return boxes, scores


def slow_search(boxes, scores, threshold, overlap, number):
    """[(score, region among the finite ones, class, box)], one pair after the other."""
    usable = boxes.isfinite().all(1) & scores.isfinite().all(1)
    boxes, scores = boxes[usable], scores[usable][:, :-1]
    boxes = boxes.view(len(boxes), boxes.shape[1] // 4, 4).expand(-1, scores.shape[1], 4)
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([SIZE[1], SIZE[0]] * 2))
    pairs = [(-scores[r, c].item(), r.item(), c.item()) for r, c in (scores > threshold).nonzero()]
    kept = []
    for score, r, c in sorted(pairs):
        rivals = [boxes[other, c] for _, other, same in kept if same == c]
        if not rivals or (box_iou(torch.stack(rivals), boxes[r, c][None]).nan_to_num().double() <= overlap).all():
            kept.append((score, r, c))
    kept = kept[:number] if number >= 0 else kept
    return [(-score, r, c, boxes[r, c].tolist()) for score, r, c in kept]


def listed(result):
    (found,), (regions,) = result
    columns = found.scores, regions, found.pred_classes, found.pred_boxes.tensor
    return list(zip(*(column.tolist() for column in columns), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(0, 12), st.integers(1, 12), st.sampled_from([0, 3, 40]),
    st.sampled_from([0, 5, 20]), st.booleans(), st.integers(0, 3), st.sampled_from([-10.0, -1.0, 1.5]),
    st.sampled_from([0.1, 0.5, 0.75]), st.sampled_from([-1, 0, 1, 10, 3000]), st.sampled_from([1, 7, 40, 1024]),
)  # fmt: skip
def test_nothing_differs_from_the_slow_search(
    seed, regions, classes, levels, box_step, own_boxes, damaged, threshold, overlap, number, length
):
    form = {"levels": levels, "box_step": box_step, "own_boxes": own_boxes, "damaged": min(damaged, regions)}
    boxes, scores = random_image(seed, regions, classes, **form)
    limits = threshold, overlap, number
    with mock.patch.object(shortlist, "LENGTH", length):
        found = listed(shortlist.detect_best([boxes], [scores], [SIZE], *limits))
    assert found == slow_search(boxes, scores, *limits)


@pytest.mark.parametrize("own_boxes", [False, True])
@pytest.mark.parametrize("number", [100, 3000, -1])
def test_nothing_differs_from_detectron2(own_boxes, number):
    boxes, scores = random_image(1, 100, 400, own_boxes=own_boxes)
    scores = scores.flatten().argsort().float().view(scores.shape)  # no two are equal
    arguments = [boxes], [scores], [SIZE], 9000.0, 0.5, number
    assert listed(shortlist.detect_best(*arguments)) == listed(fast_rcnn_inference(*arguments))


def test_the_list_is_short_and_images_are_apart():
    boxes, scores = random_image(1, 100, 400)
    lengths, by_class = [], shortlist.nms_by_class

    def counted(boxes, *rest):
        lengths.append(len(boxes))
        return by_class(boxes, *rest)

    with mock.patch.object(shortlist, "nms_by_class", counted):
        found, _ = shortlist.detect_best([boxes, boxes[:0]], [scores, scores[:0]], [SIZE] * 2, -9.0, 0.5, 100)
    assert list(map(len, found)) == [100, 0] and lengths == [shortlist.LENGTH - 1, 0]
