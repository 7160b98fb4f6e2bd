"""Collect the nouns of captions, the vocabulary of pseudo-labels (rules: clim/text/nouns.py).

    python tools/parse_nouns.py --captions coco_caption_train_tags --output datasets/metadata/coco_nouns.json
    python tools/build_text_embeddings.py classes --dataset datasets/metadata/coco_nouns.json \\
        --tower ViT-B-16-quickgelu --output datasets/metadata/coco_nouns_vitb16.npy

Writes {"categories": [{"id": 1…N, "name": noun, "count": uses}]}, the frequent nouns first.
"""

import argparse
import json
from pathlib import Path

from clim.errors import UserError, run_cleanly
from clim.files import resolve, write_json
from clim.text.nouns import parse_nouns


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--captions", nargs="+", required=True, metavar="SET",
        help="registered caption sets, or jsons: COCO's (annotations[*].caption) or Detic's (images[*].captions)",
    )  # fmt: skip
    parser.add_argument("--min-count", type=int, default=100, help="rarer nouns are dropped (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="the json to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    captions = [caption for name in args.captions for caption in captions_of(name)]
    nouns = parse_nouns(captions, min_count=args.min_count)
    if not nouns:
        raise UserError(
            f"No noun occurs {args.min_count} times in these {len(captions)} captions: lower --min-count."
        )
    categories = [{"id": i, "name": n, "count": c} for i, (n, c) in enumerate(nouns.items(), start=1)]
    write_json(args.output, {"categories": categories})
    most = ", ".join(f"{noun} {count}" for noun, count in list(nouns.items())[:8])
    print(f"{args.output}: {len(nouns)} nouns of {len(captions)} captions ({most}, …)")


def captions_of(name: str) -> list[str]:
    """Captions of a registered set or a json file."""
    from detectron2.data import DatasetCatalog

    import clim.data.builtin  # noqa: F401  registers the data sets

    if name in DatasetCatalog.list():
        captions = [caption for record in DatasetCatalog.get(name) for caption in record.get("captions", ())]
    else:
        captions = _captions_in(resolve(name))
    if not captions:
        raise UserError(f"--captions {name}: no captions in it.")
    return captions


def _captions_in(path: Path) -> list[str]:
    try:
        content = json.loads(path.read_bytes())
        if "annotations" in content:
            return [annotation["caption"] for annotation in content["annotations"]]
        return [caption for image in content["images"] for caption in image["captions"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--captions {path} is neither a registered set nor a json of captions ({error!r})."
        ) from error


if __name__ == "__main__":
    run_cleanly(main)
