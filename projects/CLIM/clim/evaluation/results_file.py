"""Results on disk: json files that are never half written and hold null where a figure does not exist."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path


def nan_to_none(row: Mapping) -> dict:
    """A copy with None in place of nan, which json does not know."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def write_json(path: Path, value, *, indent: int | None = None) -> None:
    """Write beside and rename: a reader sees the old file or the whole new one. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=indent))
    os.replace(partial, path)
