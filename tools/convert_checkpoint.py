"""Turn a published file of an official project into one that our models load.

    python tools/convert_checkpoint.py detic_coco_cap_w_tags_clim.pth --output Detic_CLIM_C4_official.pth

It ends with the command that evaluates the result, or for a first stage that trains the second one from it.
Reads OVR-CNN's two stages, CLIM's Detic and F-VLM (ViT-B/16) and ovdet's BARON (docs/checkpoints.md), and finds out
from the tensors which of them FILE is. Nothing that the file holds besides tensors is run. Official
Detic's files and CLIM's CLIPs need no conversion.
"""

import argparse
from pathlib import Path

from clim.checkpoints.checkpointer import atomic_save
from clim.errors import UserError, run_cleanly
from conversion.convert import Converted, Kind, convert, find_kind, listed, without_wrapper
from conversion.reading import read_official
from conversion.rules import KINDS


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", help="the published file")
    parser.add_argument("--output", type=Path, required=True, metavar="OURS.pth", help="the file to write")
    parser.add_argument("--kind", choices=sorted(KINDS), help="what FILE is (default: found from its tensors)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    check_output(args.output, args.file)
    print(f"Reading {args.file} …", flush=True)
    state = read_official(args.file)
    kind = chosen_kind(state, args.kind)
    converted = convert(state, kind)
    atomic_save({"model": converted.weights}, args.output)
    print("\n".join(summary(kind, converted)))
    print(f"{args.output} is written. What to do with it:")
    print(f"  python train_net.py {kind.arguments} MODEL.WEIGHTS {args.output}")


def chosen_kind(state, name: str | None) -> Kind:
    """The kind called ``name``, or the one found from the tensors. UserError where the two differ."""
    if name is None:
        return find_kind(state, KINDS.values())
    kind, fitting = KINDS[name], [k.name for k in KINDS.values() if k.fits(without_wrapper(state))]
    if fitting and name not in fitting:
        raise UserError(f"--kind {name}: the file's tensors are those of kind {fitting[0]}; leave --kind out.")
    return kind


def check_output(output: Path, source: str) -> None:
    """UserError where the result would overwrite the source, or its folder does not exist."""
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: {output.parent} is not a folder; make it, or name another.")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file in it.")
    if output.resolve() == Path(source).resolve():
        raise UserError(f"--output {output} is the published file itself: name another one.")


def summary(kind: Kind, converted: Converted) -> list[str]:
    """What was taken, left out and not found, one line each."""
    lines = [f"{kind.name}: {kind.what}", f"  taken      {len(converted.weights)} tensors"]
    for reason, names in converted.left_out.items():
        lines.append(f"  left out   {len(names)}: {reason}")
    if converted.unknown:
        names = listed(converted.unknown)
        lines.append(f"  left out   {len(converted.unknown)} that this kind does not know: {names}")
    if converted.missing:
        names = listed(converted.missing)
        lines.append(f"  not found  {len(converted.missing)}, which training starts anew: {names}")
    return lines


if __name__ == "__main__":
    run_cleanly(main)
