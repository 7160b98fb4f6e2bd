"""Batches without what was skipped."""

from clim.data.skipping_loader import Skipped, SkippingLoader

LOST, BLANK = Skipped("a.jpg", "missing"), Skipped("b.jpg", "no region left")


def test_what_is_skipped_is_told_and_left_out():
    told = []
    batches = [[{"id": 1}, LOST], [BLANK], [{"id": 2}], [LOST, {"id": 3}, {"id": 4}], []]
    loader = SkippingLoader(batches, on_skip=told.append)
    assert list(loader) == [[{"id": 1}], [{"id": 2}], [{"id": 3}, {"id": 4}]]
    assert told == [LOST, BLANK, LOST]
    assert len(loader) == 5  # what is skipped is not known beforehand


def test_every_pass_tells_anew():
    told = []
    loader = SkippingLoader([[LOST]], on_skip=told.append)
    assert list(loader) == list(loader) == [] and told == [LOST, LOST]


def test_a_picture_is_told_before_its_batch_is_given():
    told = []
    batches = iter(SkippingLoader([[{"id": 1}, LOST], [BLANK]], on_skip=told.append))
    assert next(batches) == [{"id": 1}] and told == [LOST]
