"""Turn a published file of an official project into one that our models load.

    python tools/convert_checkpoint.py detic_coco_cap_w_tags_clim.pth --output Detic_CLIM_C4_official.pth

It reads OVR-CNN's two stages, CLIM's Detic (OV-COCO and OV-LVIS) and F-VLM (ViT-B/16) and ovdet's BARON
(docs/checkpoints.md), and finds the kind of FILE from its tensors. It runs no code of the file. At the end it prints
the command that evaluates the result, or trains the second stage from a first one. Official Detic's files and CLIM's
CLIPs need no conversion.
"""

import argparse
import shlex
from pathlib import Path

from arguments import new_parser
from clim.errors import run_cleanly
from clim_commands.inputs import output_file, require_other

ROOT = Path(__file__).resolve().parents[1]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="the published file")
    parser.add_argument("--output", type=output_file, required=True, metavar="OURS.pth", help="the file to write")
    parser.add_argument("--kind", help="what FILE is, as in docs/checkpoints.md (default: found from its tensors)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    require_other(args.output, args.file)
    from clim.checkpoints.checkpointer import atomic_save  # after wrong arguments are reported
    from clim.checkpoints.reading import require_finite
    from conversion.convert import convert, find_kind, read_official, summary
    from conversion.rules import KINDS

    print(f"Reading {args.file} …", flush=True)
    state = read_official(args.file)
    kind = find_kind(state, KINDS.values(), args.kind)
    converted = convert(state, kind)
    require_finite(converted.weights, args.file)  # what is left out may hold anything, as -inf in masks
    atomic_save(described(converted.weights, kind.arguments), args.output)
    print("\n".join(summary(kind, converted)))
    print(f"{args.output} is written. What to do with it:")
    print(f"  python train_net.py {kind.arguments} MODEL.WEIGHTS {args.output}")


def described(weights: dict, arguments: str) -> dict:
    """The checkpoint of ``weights``; with its config and which classes had boxes if it holds class embeddings.

    Then it is enough for a Detector. ``arguments`` are those of train_net.py.
    """
    from clim.checkpoints.reading import DESCRIPTION
    from clim.engine import load_config
    from clim.engine.setup import describe
    from clim.modeling.vocabulary import class_mask

    config_file, *overrides = shlex.split(arguments.partition("--config-file ")[2])
    if "MODEL.VOCABULARY.EMBEDDINGS" not in overrides:
        return {"model": weights}
    if "lvis/" in config_file:  # the config's file of image counts may not be here
        overrides += ["MODEL.OPEN_VOCAB.BASE_CLASSES", "lvis_v1_train_norare"]
    cfg = load_config(str(ROOT / config_file), overrides)
    heads = (name.removesuffix("cls_score.zs_weight") for name in weights if name.endswith(".cls_score.zs_weight"))
    masks = {f"{head}freq_weight": class_mask(cfg) for head in heads}
    return {"model": masks | weights, DESCRIPTION: describe(cfg)}


if __name__ == "__main__":
    run_cleanly(main)
