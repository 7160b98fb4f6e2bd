"""Name the regions of images without annotations: RPN proposals, cropped and matched to nouns by CLIP.

    python tools/pseudo_label.py --dataset coco_caption_train_tags \\
        --config-file configs/BoxSup_C4.yaml --weights output/BoxSup_C4/model_final.pth \\
        --encoder configs/CLIP_CLIM_ViTB16_COCO.yaml \\
        --nouns datasets/metadata/coco_nouns.json --embeddings datasets/metadata/coco_nouns_vitb16.npy \\
        --output datasets/coco/annotations/pseudo_regions.json

This output is the data set coco_pseudo_regions of configs/CLIP_RegionCLIP_ViTB16_COCO.yaml. OUTPUT.parts/ keeps
finished images: after an interruption, the same command continues. On several GPUs, start one process on each with
--shard 0/8, 1/8, …; the last one writes the json. Unreadable images are left out and listed. To try them again, remove
OUTPUT.parts/. You may also remove it when the json is written.
"""

import argparse
import hashlib
import re
import shlex
from pathlib import Path

import numpy as np
from tqdm import tqdm

from arguments import listed_names, new_parser
from clim.errors import UserError, run_cleanly
from clim.files import resolve, write_json
from clim_commands.inputs import add_overrides, count, number, output_file, quiet_logging, require_other, workers

LISTED = 10  # unreadable images by name


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--dataset", required=True, help="a registered set of images")
    add("--config-file", required=True, help="YAML of the detector whose RPN proposes")
    add("--weights", help="its checkpoint (default: the config's)")
    add("--encoder", required=True, help="YAML with the image encoder (MODEL.IMAGE_ENCODER)")
    add("--encoder-weights", help="checkpoint of that image-text model (default: MODEL.WEIGHTS, none if empty)")
    add("--nouns", required=True, help="json with categories, of tools/parse_nouns.py")
    add("--embeddings", required=True, help=".npy (nouns, D), of tools/build_text_embeddings.py")
    add("--output", type=output_file, required=True, help="the json to write")
    add("--boxes", type=count, default=20, help="most proposals of an image, by objectness (%(default)s)")
    add("--overlap", type=number(0, 1), default=0.5, help="of boxes with a higher IoU one stays (%(default)s)")
    add("--min-area", type=number(0), default=64, help="px², smaller boxes are left out (%(default)s)")
    objectness_help = "least probability of a proposal, the sigmoid of the RPN's logit (%(default)s: no cut)"
    add("--min-objectness", type=number(0, 1), default=0.0, help=objectness_help)
    score_help = "least cosine of a box and its noun (%(default)s: no cut)"
    add("--min-score", type=number(-1, 1), default=-1.0, help=score_help)
    add("--shard", default="0/1", metavar="I/N", help="every N-th image from the I-th on (%(default)s)")
    add("--workers", type=workers, default=2, help="processes that decode images")
    add("--encoder-opts", type=shlex.split, default=[], metavar="'KEY VALUE …'", help="overrides of --encoder, quoted")
    add_overrides(parser)  # of --config-file
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    shard, shards = read_shard(args.shard)
    from detectron2.data import DatasetCatalog, MetadataCatalog  # loads after wrong arguments are reported

    from clim.engine import load_config
    from pseudo_labels.folder import LabelFolder, coco_format, label_images

    quiet_logging()
    detector = load_config(args.config_file, with_weights(args.opts, args.weights))
    encoder = load_config(args.encoder, with_weights(args.encoder_opts, args.encoder_weights))
    nouns, embeddings = read_nouns(args.nouns, args.embeddings)
    if args.dataset not in DatasetCatalog.list():
        raise UserError(f"--dataset {args.dataset} is not registered: clim/data/datasets.py lists the names.")
    source = MetadataCatalog.get(args.dataset).get("json_file")
    require_other(args.output, *map(resolve, filter(None, (args.nouns, args.embeddings, source))))
    records = DatasetCatalog.get(args.dataset)
    folder = LabelFolder(
        args.output.with_name(args.output.name + ".parts"), settings_of(args, detector, encoder, nouns, embeddings)
    )
    lines = folder.finished()
    share = records[shard::shards]
    mine = [record for record in share if record["image_id"] not in lines]
    if mine:
        labeller = build_labeller(args, detector, encoder, embeddings)
        with folder.appending(shard, shards) as append:
            labelled = label_images(mine, labeller, append, workers=args.workers)
            known, name = len(share) - len(mine), f"shard {shard}/{shards}"
            for _ in tqdm(labelled, total=len(share), initial=known, desc=name, unit="image"):
                pass
        lines = folder.finished()
    missing = sum(record["image_id"] not in lines for record in records)
    if missing:
        print(f"Shard {shard}/{shards} is done; {missing} of {len(records)} images are left to other shards.")
        return
    content = coco_format(records, lines, nouns=nouns, image_root=MetadataCatalog.get(args.dataset).image_root)
    report(args.output, content, skipped_of(records, lines), total=len(records))
    write_json(args.output, content, shared=True)  # two shards may both come last


def build_labeller(args: argparse.Namespace, detector, encoder, embeddings: np.ndarray):
    """The labeller of a detector's and an encoder's config; ``embeddings`` (N, D) of the nouns."""
    import torch

    from pseudo_labels.labeller import Proposer, PseudoLabeller, load_image_encoder

    return PseudoLabeller(
        propose=Proposer(
            detector, count=args.boxes, overlap=args.overlap, min_area=args.min_area,
            min_objectness=args.min_objectness,
        ),
        encoder=load_image_encoder(encoder),
        nouns=torch.from_numpy(embeddings),
        pixel_mean=encoder.MODEL.PIXEL_MEAN,
        pixel_std=encoder.MODEL.PIXEL_STD,
        input_format=encoder.INPUT.FORMAT,
        min_score=args.min_score,
    )  # fmt: skip


def with_weights(overrides: list[str], weights: str | None) -> list[str]:
    return overrides if weights is None else [*overrides, "MODEL.WEIGHTS", weights]


def read_shard(text: str) -> tuple[int, int]:
    """ "2/8" → (2, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {text}: give I/N with I from 0 to N - 1, such as 0/8.")
    return int(match[1]), int(match[2])


def read_nouns(names: str, embeddings: str) -> tuple[list[str], np.ndarray]:
    """Nouns by ascending id, and their embeddings (N, D), unit rows."""
    from clim.text import load_embeddings

    nouns = listed_names(resolve(names), remedy="make it with tools/parse_nouns.py")
    rows = load_embeddings(embeddings, key="--embeddings").numpy()
    if len(rows) != len(nouns):
        raise UserError(
            f"--embeddings {embeddings} holds {len(rows)} rows, but --nouns {names} {len(nouns)} nouns: embed "
            f"them with tools/build_text_embeddings.py classes --dataset {names}."
        )
    return nouns, rows


def settings_of(args, detector, encoder, nouns: list[str], embeddings: np.ndarray) -> dict:
    """{option: value} of all that changes labels: names of files, hashes of tables and checkpoints."""
    same = (
        "dataset", "config_file", "encoder", "opts", "encoder_opts", "boxes", "overlap", "min_area", "min_objectness",
        "min_score",
    )  # fmt: skip
    weights = {"--weights": detector.MODEL.WEIGHTS, "--encoder-weights": encoder.MODEL.WEIGHTS}
    contents = {"--nouns": "\n".join(nouns).encode(), "--embeddings": embeddings.tobytes()}
    contents |= {f"file of {o}": Path(path).read_bytes() for o, path in weights.items() if Path(path).is_file()}
    return (
        {f"--{name.replace('_', '-')}": getattr(args, name) for name in same}
        | weights
        | {option: hashlib.sha256(data).hexdigest()[:16] for option, data in contents.items()}
    )


def skipped_of(records: list[dict], lines: dict[int, dict]) -> list[str]:
    """ "file: reason" of every unreadable image."""
    reasons = ((record["file_name"], lines[record["image_id"]].get("skipped")) for record in records)
    return [f"{name}: {reason}" for name, reason in reasons if reason]


def report(output: Path, content: dict, skipped: list[str], *, total: int) -> None:
    if skipped:
        print(f"{len(skipped)} of {total} images could not be read; the first ones:")
        print("\n".join(f"  {fault}" for fault in skipped[:LISTED]))
    if not content["images"]:
        raise UserError(f"None of the {total} images has a labelled box: {output} was not written.")
    used = len({annotation["category_id"] for annotation in content["annotations"]})
    print(
        f"{output}: {len(content['annotations'])} boxes of {used} nouns on {len(content['images'])} of {total} images"
    )


if __name__ == "__main__":
    run_cleanly(main)
