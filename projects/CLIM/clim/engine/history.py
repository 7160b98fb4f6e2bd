"""metrics.json tells of one run: an earlier run's is put aside, a resumed run cuts what it will repeat."""

import json
import logging
import os
from pathlib import Path

from clim.files import replacing

logger = logging.getLogger(__name__)


def put_earlier_run_aside(output_dir) -> None:
    """A run that starts afresh: rename metrics.json, and last_checkpoint, which --resume must not meet.

    Otherwise a run that is killed before its first checkpoint would resume the earlier one.
    """
    for name in ("metrics.json", "last_checkpoint"):
        path = Path(output_dir) / name
        if path.is_file():
            aside = path.with_name(f"previous.{name}")
            os.replace(path, aside)
            logger.info("%s is of an earlier run: renamed to %s.", path, aside.name)


def cut_metrics(output_dir, *, start_iter: int) -> None:
    """A run that resumes: drop the lines from ``start_iter`` on, and the one that a kill broke off."""
    path = Path(output_dir) / "metrics.json"
    if not path.is_file():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if _is_before(line, start_iter)]
    with replacing(path) as partial:
        partial.write_text("".join(lines))


def _is_before(line: str, start_iter: int) -> bool:
    try:
        return json.loads(line)["iteration"] < start_iter
    except (ValueError, KeyError, TypeError):
        return False
