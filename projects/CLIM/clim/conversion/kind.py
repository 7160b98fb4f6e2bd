"""What a kind of official file is: a table from its names to ours, and what becomes of a file by it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor

from clim.errors import UserError

State = Mapping[str, Tensor]
_NAMED = 4  # names in a sentence


class Row(NamedTuple):
    """One tensor of a table.

    Args:
        ours: name in our state dict.
        change: the official tensor → ours.
        optional: files without it are whole.
    """

    ours: str
    change: Callable[[Tensor], Tensor] = Tensor.clone
    optional: bool = False


Table = dict[str, Row]  # official name → row


def with_bias(layers: Mapping[str, str], *, optional: bool = False) -> Table:
    """Weight and bias of each {official layer: ours}, as they are."""
    return {
        f"{official}.{name}": Row(f"{ours}.{name}", optional=optional)
        for official, ours in layers.items()
        for name in ("weight", "bias")
    }


@dataclass(frozen=True)
class Kind:
    """A kind of official file.

    Args:
        name: what the command line calls it.
        what: one phrase for people.
        arguments: of train_net.py, with the result as MODEL.WEIGHTS.
        fits: whether a file is of this kind, from its tensors.
        table: every tensor that is taken.
        left_out: {pattern of official names: why they are not needed}; the first that fits counts.
    """

    name: str
    what: str
    arguments: str
    fits: Callable[[State], bool]
    table: Table
    left_out: dict[str, str]


@dataclass
class Converted:
    """What came of a file. ``left_out``: {reason: official names}; ``missing``: our names, kept as initialised."""

    weights: dict[str, Tensor]
    left_out: dict[str, list[str]]
    unknown: list[str]
    missing: list[str]


def find_kind(state: State, kinds: Iterable[Kind]) -> Kind:
    """The kind that the file's names tell. UserError where none fits."""
    kinds, state = list(kinds), without_wrapper(state)
    for kind in kinds:
        if kind.fits(state):
            return kind
    raise UserError(
        f"The file is of no kind that can be converted ({', '.join(kind.name for kind in kinds)}): it holds "
        f"{listed(state)}.{_needs_none(state)}"
    )


def convert(state: State, kind: Kind) -> Converted:
    """Our names and layouts for an official file's tensors (N, of any shape each).

    Raises UserError where the file lacks tensors that every file of the kind has, or one has another shape.
    """
    state = without_wrapper(state)
    lacking = {name: row for name, row in kind.table.items() if name not in state}
    needed = [name for name, row in lacking.items() if not row.optional]
    if needed:
        raise UserError(
            f"The file lacks {len(needed)} of the {len(kind.table)} tensors of kind {kind.name}, {listed(needed)}: "
            "is it whole, and of this kind (--kind)?"
        )
    weights, left_out, unknown = {}, {}, []
    for name, tensor in state.items():
        if name in kind.table:
            weights[kind.table[name].ours] = _changed(name, tensor, kind)
        elif reason := next((r for p, r in kind.left_out.items() if fnmatchcase(name, p)), None):
            left_out.setdefault(reason, []).append(name)
        else:
            unknown.append(name)
    if layers := [name for name in unknown if name.startswith("backbone.")]:
        raise UserError(
            f"The file's backbone has {len(layers)} tensors that kind {kind.name} does not know, {listed(layers)}: it "
            "is another backbone, which is not converted."
        )
    _check_widths(weights)
    return Converted(weights, left_out, unknown, [row.ours for row in lacking.values()])


def without_wrapper(state: State) -> dict[str, Tensor]:
    """Names as the model itself has them: those of a model in DistributedDataParallel begin with ``module.``"""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _changed(name: str, tensor: Tensor, kind: Kind) -> Tensor:
    try:
        return kind.table[name].change(tensor)
    except (RuntimeError, IndexError) as error:
        raise UserError(
            f"{name} has shape {tuple(tensor.shape)}, which no file of kind {kind.name} has: name another --kind."
        ) from error


def _check_widths(weights: State) -> None:
    """UserError where a normalisation is not as wide as the convolution before it: layers of several files."""
    for name, scale in weights.items():
        conv = (
            weights.get(name.removesuffix("norm.weight") + "weight")
            if name.endswith(".norm.weight")
            else None
        )
        if conv is not None and len(conv) != len(scale):
            raise UserError(
                f"{name} has {len(scale)} channels, but the convolution before it {len(conv)}: the file is not whole."
            )


def _needs_none(state: State) -> str:
    """Files that other parts of the project read as they are."""
    if any(name.startswith("roi_heads.box_predictor.") for name in state):
        return " Detectron2's names, as our own and official Detic's files have: set MODEL.WEIGHTS to it as it is."
    if "visual.conv1.weight" in state:
        return " CLIP's names: set MODEL.IMAGE_ENCODER.PRETRAINED to it as it is."
    return ""
