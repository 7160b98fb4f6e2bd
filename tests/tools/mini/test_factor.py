"""Pairs of four sizes: the factors are exact, nothing but the size differs, and no other mini set changes."""

import json

import numpy as np
import pytest

from mini import lvis, own
from mini.concepts import CONCEPTS, caption_tags
from mini.factor import FACTORS, SPREAD, STREAM, build_factor, draw_factor_pair, set_name
from mini.generate import SPLITS, encode_jpeg


@pytest.fixture(scope="module")
def pairs():
    """{factor: [(drawn, captions), …]} of 40 pairs."""
    return {factor: [draw_factor_pair(7, i, factor) for i in range(40)] for factor in FACTORS}


def sides(drawn):
    """(40,) longer sides in px of the objects of pairs."""
    return np.array([image.boxes()[0, 2:].max() for image, _ in drawn])


def test_objects_of_two_factors_differ_by_their_ratio(pairs):
    assert FACTORS == (1.0, 1.6, 2.5, 4.0)
    for factor, drawn in pairs.items():
        # A rotated drawing may be less than its side by some percent, and a tight box ends at whole pixels.
        side = 56 * factor
        assert (sides(drawn) <= side * SPREAD + 1).all() and (sides(drawn) > side / SPREAD * 0.75).all()
        ratio = sides(drawn) / sides(pairs[1.0])
        assert abs(np.exp(np.log(ratio).mean()) - factor) < 0.03 * factor
        assert (np.abs(ratio / factor - 1) < 0.1).all()  # 39 px may be rounded by two


def test_pairs_of_an_index_differ_in_size_alone(pairs):
    for small, *larger in zip(*pairs.values(), strict=True):
        image, captions = small
        assert len(image.concepts) == 1
        x, y, width, height = image.boxes()[0]
        for other, other_captions in larger:
            assert other_captions == captions and other.concepts == image.concepts
            background = (image.mask < 0) & (other.mask < 0)
            edge = np.abs(image.image[background].astype(int) - other.image[background]).max(axis=1) > 0
            assert edge.mean() < 0.05  # pixels that a drawing covers by less than a quarter
            x1, y1, width1, height1 = other.boxes()[0]
            # The same part of the free width and height lies before the object.
            for low, extent, low1, extent1 in ((x, width, x1, width1), (y, height, y1, height1)):
                assert abs(low / (256 - extent) - low1 / (256 - extent1)) < 0.25
    concepts = [drawn.concepts[0] for drawn, _ in pairs[4.0]]
    assert len(set(concepts)) > 20 and max(concepts) < len(CONCEPTS)


def test_its_random_stream_is_its_own():
    assert STREAM not in {*range(len(SPLITS)), *lvis.STREAMS.values(), *own.STREAMS.values()}


def test_files_hold_the_pairs_and_the_held_out_ones(tmp_path):
    summary = build_factor(tmp_path, seed=7, num_pairs=3, num_held_out=2, workers=1)
    assert summary["counts"] == dict.fromkeys(map(set_name, FACTORS), {"images": 3, "held-out images": 2})
    folder = tmp_path / "mini_factor"
    for factor in FACTORS:
        name, entries, boxes = set_name(factor), [], []
        for part, number in (("captions", 3), ("held_out", 2)):
            content = json.loads((folder / f"annotations/{part}_{name}.json").read_text())
            assert [o["image_id"] for o in content["annotations"]] == [image["id"] for image in content["images"]]
            assert len(content["images"]) == number
            entries += content["images"]
            boxes += [(o["category_id"], o["bbox"]) for o in content["annotations"]]
        for i, (image, (category, box)) in enumerate(zip(entries, boxes, strict=True)):
            drawn, captions = draw_factor_pair(7, i, factor)
            assert (folder / name / image["file_name"]).read_bytes() == encode_jpeg(drawn.image)
            assert image["captions"] == captions and image["pos_category_ids"] == caption_tags(captions) == [category]
            assert (drawn.concepts, drawn.boxes().tolist()) == ([category - 1], [box])
    before = (folder / "summary.json").stat().st_mtime_ns
    assert build_factor(tmp_path, seed=7, num_pairs=3, num_held_out=2) == summary
    assert (folder / "summary.json").stat().st_mtime_ns == before
