"""Pictures to test on that give no input are told and left out of the batches; the others go on."""

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Skipped(NamedTuple):
    """What a mapper returns for a picture that gives no input."""

    file_name: str
    reason: str


class SkippingLoader:
    """Batches of a loader without the pictures that were skipped; these are told to ``on_skip``."""

    def __init__(self, loader, *, on_skip: Callable[[Skipped], None]):
        self.loader, self.on_skip = loader, on_skip

    def __len__(self) -> int:
        """Batches, counting those that turn out to be empty."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            for sample in batch:
                if isinstance(sample, Skipped):
                    self.on_skip(sample)
            if samples := [sample for sample in batch if not isinstance(sample, Skipped)]:
                yield samples
