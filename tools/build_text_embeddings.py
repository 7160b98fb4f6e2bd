"""Compute text embeddings once: of classes or nouns (a .npy or .pth for MODEL.VOCABULARY.EMBEDDINGS or
MODEL.METHOD.VLDET.EMBEDDINGS) or of captions (a cache for MODEL.TEXT.CACHE).

    python tools/build_text_embeddings.py classes --dataset coco --prompt a \\
        --output datasets/metadata/coco_clip_a+cname.npy
    python tools/build_text_embeddings.py classes --dataset coco --features hidden \\
        --output datasets/metadata/coco_clip_hand_craft_attn12.npy
    python tools/build_text_embeddings.py classes --dataset coco --features words \\
        --tower bert-base-uncased --output datasets/metadata/coco_bert_words.npy
    python tools/build_text_embeddings.py classes --dataset datasets/coco/VLDet/coco_nouns_4764.txt \\
        --prompt imagenet --tower RN50-quickgelu --output datasets/coco/VLDet/coco_nouns_4764_emb.pth
    python tools/build_text_embeddings.py classes --names "dog, cat" --like model.onnx --output rows.npy
    python tools/build_text_embeddings.py captions --dataset coco_caption_train_tags --cache output/captions
"""

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from arguments import (
    CLASS_LISTS,
    PROMPTS,
    add_device,
    known_classes,
    listed_names,
    new_parser,
    registered_captions,
    usable_device,
)
from clim.errors import UserError, run_cleanly
from clim.files import decode_json, resolve
from clim_commands.inputs import output_file, output_folder, quiet_logging, read_names, require_other
from clim_commands.outputs import prefill, read_note, write_embeddings

FEATURES = ("embedding", "hidden", "words")  # the keys of clim.text.CLASS_FEATURES


class Text(TypedDict):
    """What an exported detector says about its text embeddings, by the names of this command's arguments."""

    tower: str
    pretrained: str
    prompt: Literal[PROMPTS]
    features: Literal[FEATURES]


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    quiet_logging()
    args.device = usable_device(args.device)
    if args.command == "classes":
        build_classes(args)
    else:
        fill_cache(args)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    classes = commands.add_parser("classes", help="names of classes or nouns -> .npy or .pth (K, D)")
    source = classes.add_mutually_exclusive_group(required=True)
    dataset_help = f"{', '.join(CLASS_LISTS)}, a json with categories (LVIS, nouns) by ascending id, or nouns in a .txt"
    source.add_argument("--dataset", help=dataset_help)
    source.add_argument("--names", help='class names in order, "a,b,c", or a .txt, .csv, .json or .yaml')
    classes.add_argument("--prompt", choices=PROMPTS, default="ensemble", help="default: %(default)s")
    features_help = """"hidden": of the last layer, for MODEL.OPEN_VOCAB.CLASSIFIER "pseudo_words"; "words": mean of a
        name's word pieces among the tower's word embeddings, float32, for OV-RCNN, without prompts (%(default)s)"""
    classes.add_argument("--features", choices=FEATURES, default="embedding", help=features_help)
    classes.add_argument("--output", required=True, type=output_file, help="the .npy or .pth file to write")
    like_help = "file of clim export --dynamic-classes: tower, prompt and features that it needs"
    classes.add_argument("--like", type=Path, metavar="MODEL.onnx", help=like_help)
    captions = commands.add_parser("captions", help="captions of registered data sets -> cache folder")
    captions.add_argument("--dataset", required=True, nargs="+", help="registered caption data sets")
    captions.add_argument("--cache", required=True, type=output_folder, help="the folder that MODEL.TEXT.CACHE names")
    for command in (classes, captions):
        command.add_argument("--tower", default="ViT-B-32-quickgelu", help="as MODEL.TEXT.NAME (%(default)s)")
        command.add_argument("--pretrained", default="openai", help="as MODEL.TEXT.PRETRAINED (%(default)s)")
        add_device(command)
    return parser.parse_args(arguments)


def build_classes(args: argparse.Namespace) -> None:
    from clim.text import CLASS_FEATURES, build_text_tower

    names = class_names(dataset=args.dataset, names=args.names)
    check_beside(args)
    if args.like:
        vars(args).update(text_of(args.like))
    tower = build_text_tower(name=args.tower, pretrained=args.pretrained, device=args.device)
    embeddings = CLASS_FEATURES[args.features](tower, names, args.prompt).cpu().numpy()
    if args.features != "words" and not args.like:  # dot products need all of words' digits, a graph takes float32
        embeddings = embeddings.astype(np.float16)
    write_embeddings(args.output, embeddings, names)
    print(f"{args.output}: {embeddings.shape[0]} classes x {embeddings.shape[1]} dimensions")


def check_beside(args: argparse.Namespace) -> None:
    """UserError if --output, or the list of names beside it, would replace a file of somebody else."""
    from clim.data.names import names_file

    inputs = [args.like, *(text and resolve(text) for text in (args.dataset, args.names))]
    for output in (args.output, names_file(args.output)):
        require_other(output, *inputs)
    remedy = "it is no list of names of this command: move it away, or name another --output"
    read_note(names_file(args.output), kind=list[str], remedy=remedy)


def text_of(model: Path) -> Text:
    """The arguments tower, pretrained, prompt and features in the metadata of an ONNX file of ``clim export``."""
    import onnx
    from google.protobuf.message import DecodeError

    remedy = "--like takes an ONNX file of `clim export`"
    try:
        found = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    except (OSError, DecodeError) as error:
        raise UserError(f"{model} cannot be read ({error}): {remedy}.") from error
    return decode_json(found.get("text", "null").encode(), source=f"{model}, metadata", kind=Text, remedy=remedy)


def fill_cache(args: argparse.Namespace) -> None:
    from clim.text import CaptionCache, LazyTower

    tower = LazyTower(name=args.tower, pretrained=args.pretrained, directory=args.cache, device=args.device)
    cache = CaptionCache(tower, args.cache)
    new = prefill(cache, captions_of(args.dataset))
    print(f"{args.cache}: {new} captions computed, {len(cache)} known")


def class_names(*, dataset: str | None, names: str | None) -> list[str]:
    """Names in the order of the contiguous class indices."""
    if names is not None:
        return read_names(names, option="--names")
    if known := known_classes(dataset):
        return known
    remedy = f"--dataset takes a known list of classes ({', '.join(CLASS_LISTS)}), a json with categories, or a .txt"
    return listed_names(resolve(dataset), remedy=remedy)


def captions_of(datasets: list[str]) -> Iterator[str]:
    """All captions of registered data sets, one by one in order."""
    found = {name: registered_captions(name) for name in datasets}
    if unknown := [name for name, captions in found.items() if captions is None]:
        raise UserError(f"--dataset {unknown[0]} is not registered: try coco_caption_train_tags.")
    captions = chain.from_iterable(found.values())
    first = next(captions, None)
    if first is None:
        raise UserError(f"--dataset {' '.join(datasets)}: no captions in it, only boxes.")
    return chain([first], captions)


if __name__ == "__main__":
    run_cleanly(main)
