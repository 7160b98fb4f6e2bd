"""Records → network inputs, each a pure function of (seed, epoch, index): workers and ranks don't matter."""

from collections.abc import Sequence

import numpy as np

from clim.errors import UserError

from .images import Decoded, UnreadableImage, read_image

MAX_REPLACEMENTS = 50  # in a row: then the image folder is wrong, not a picture


class RecordMapper:
    """What all mappers share: the random stream of a sample, and what happens to unreadable pictures."""

    square = False  # whether all samples have one square size, whatever the pictures' shapes
    annotated = False  # whether records hold boxes, which are wrong on a picture of another size than theirs

    def __init__(self, records: Sequence[dict], *, seed: int, stream: int, image_format: str):
        self.records = records
        self.seed, self.stream, self.image_format = seed, stream, image_format

    def __call__(self, *, index: int, epoch: int) -> dict:
        """One network input, with ``skipped``: [(file name, reason)] of the pictures that were replaced."""
        rng = np.random.default_rng([self.seed, self.stream, epoch, index])
        skipped: list[tuple[str, str]] = []
        sample = self.map(index, rng, skipped)
        sample["skipped"] = skipped
        return sample

    def read(self, index: int, rng: np.random.Generator, skipped: list, replace, at_least=None):
        """(record, decoded picture) of ``index``, or of the first readable one that ``replace()`` names."""
        for _ in range(MAX_REPLACEMENTS):
            record = self.records[index]
            try:
                short_of = at_least(record) if at_least else None
                decoded = read_image(record["file_name"], fmt=self.image_format, at_least=short_of)
                if self.annotated:
                    check_size(record, decoded)
                return record, decoded
            except UnreadableImage as error:
                skipped.append((error.file_name, error.reason))
                index = replace()
        raise UserError(
            f"{MAX_REPLACEMENTS} pictures in a row could not be read, the last one {skipped[-1][0]} "
            f"({skipped[-1][1]}): is the image folder of this data set complete?"
        )

    def any_record(self, rng):
        return lambda: int(rng.integers(len(self.records)))


def check_size(record: dict, decoded: Decoded) -> None:
    """UnreadableImage where the picture is not the one that was annotated."""
    told, found = (record["width"], record["height"]), (decoded.width, decoded.height)
    if told != found:
        reason = f"{found[0]}x{found[1]} px, but annotated as {told[0]}x{told[1]}"
        raise UnreadableImage(record["file_name"], reason)
