"""Read official projects' files without running their code, find their kind, and rename their tensors by rules."""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clim.checkpoints.reading import check_archive, numpy_globals, readable, weights_of
from clim.errors import UserError

State = Mapping[str, Tensor]
_NAMED = 4  # names in a sentence
_SLOT = re.compile(r"<(.*?)>")


class Rule(NamedTuple):
    """Renames tensors: "a.<x,y>.<0-2>" to "b.<>.c<1-3>" turns "a.y.2" into "b.y.c3".

    Args:
        official: names in the file. A slot <x,y> stands for each of its words, <0-2> for each number.
        ours: names in our state dict, with as many slots. <> keeps the word; another slot lists the new words.
        change: the official tensor → ours.
        optional: a file may lack these tensors.
    """

    official: str
    ours: str
    change: Callable[[Tensor], Tensor] = Tensor.clone
    optional: bool = False

    def singles(self) -> Iterator["Rule"]:
        """One rule for each tensor, without slots."""
        theirs, ours = ([_words(slot) for slot in _SLOT.findall(names)] for names in self[:2])
        pairs = [list(zip(a, b or a, strict=True)) for a, b in zip(theirs, ours, strict=True)]
        theirs, ours = (_SLOT.sub("{}", names) for names in self[:2])
        for chosen in product(*pairs):
            yield self._replace(
                official=theirs.format(*(a for a, _ in chosen)), ours=ours.format(*(b for _, b in chosen))
            )


def _words(slot: str) -> list[str]:
    if numbers := re.fullmatch(r"(\d+)-(\d+)", slot):
        return [str(i) for i in range(int(numbers[1]), int(numbers[2]) + 1)]
    return slot.split(",") if slot else []


@dataclass(frozen=True)
class Kind:
    """A kind of official file.

    Args:
        name: of --kind.
        what: a phrase that describes it.
        arguments: of train_net.py for the result.
        fits: whether a file is of this kind, from its tensors.
        rules: for every tensor that is taken.
        left_out: {pattern of official names: why they are not needed}; the first fitting one counts.
    """

    name: str
    what: str
    arguments: str
    fits: Callable[[State], bool]
    rules: Sequence[Rule]
    left_out: dict[str, str]

    @cached_property
    def table(self) -> dict[str, Rule]:
        """{official name: rule for that tensor alone}."""
        singles = (one for rule in self.rules for one in rule.singles())
        return {single.official: single for single in singles}


@dataclass
class Converted:
    """A file's tensors under our names. ``left_out``: {reason: official names}; ``missing``: our names."""

    weights: dict[str, Tensor]
    left_out: dict[str, list[str]]
    unknown: list[str]
    missing: list[str]


class Inert:
    """Replaces any class or function that a file names. It takes all arguments and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_official(path: str) -> dict[str, Tensor]:
    """{name: tensor} of a file of ``torch.save``: under "model" (maskrcnn-benchmark), "state_dict" (MMDetection) or
    at its top.

    MMDetection's files also hold objects of its own classes. Each becomes an :class:`Inert` object, so MMDetection is
    not needed and none of its code runs. Raises UserError if the file is missing, damaged, without weights, or calls
    the operating system.
    """
    with readable(path):
        check_archive(Path(path))
        with torch.serialization.safe_globals(numpy_globals()):
            # The format before PyTorch 1.6 cannot be searched. It is read if it holds tensors alone.
            modern = zipfile.is_zipfile(path)
            strangers = torch.serialization.get_unsafe_globals_in_checkpoint(path) if modern else []
            with torch.serialization.safe_globals([(Inert, name) for name in strangers]):
                data = torch.load(path, map_location="cpu", weights_only=True)
    return weights_of(data, path)


def find_kind(state: State, kinds: Iterable[Kind], name: str | None = None) -> Kind:
    """The kind called ``name``, or the first one that fits. Raises UserError if none or another one fits."""
    state, known = without_wrapper(state), {kind.name: kind for kind in kinds}
    fitting = [kind.name for kind in known.values() if kind.fits(state)]
    if name is None and not fitting:
        raise UserError(
            f"The file is of no kind that can be converted ({', '.join(known)}): it holds {listed(state)}."
            f"{_needs_none(state)}"
        )
    if name is not None and (name not in known or (fitting and name not in fitting)):
        other = f": the file's tensors are those of kind {fitting[0]}" if fitting else f" is none of {', '.join(known)}"
        raise UserError(f"--kind {name}{other}; leave --kind out.")
    return known[name or fitting[0]]


def convert(state: State, kind: Kind) -> Converted:
    """Our names and layouts for an official file's tensors.

    Raises UserError if the file lacks a tensor that its kind needs, or a tensor has another shape.
    """
    state = without_wrapper(state)
    lacking = {name: rule for name, rule in kind.table.items() if name not in state}
    needed = [name for name, rule in lacking.items() if not rule.optional]
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
    return Converted(weights, left_out, unknown, [rule.ours for rule in lacking.values()])


def summary(kind: Kind, converted: Converted) -> list[str]:
    """Lines that count the tensors taken, left out and not found."""
    lines = [f"{kind.name}: {kind.what}", f"  taken      {len(converted.weights)} tensors"]
    for reason, names in converted.left_out.items():
        lines.append(f"  left out   {len(names)}: {reason}")
    if unknown := converted.unknown:
        lines.append(f"  left out   {len(unknown)} that this kind does not know: {listed(unknown)}")
    if missing := converted.missing:
        lines.append(f"  not found  {len(missing)}, which training starts anew: {listed(missing)}")
    return lines


def without_wrapper(state: State) -> dict[str, Tensor]:
    """The names without the ``module.`` of DistributedDataParallel."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def listed(names: Iterable[str]) -> str:
    """The first few names, and the number of the others."""
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


def _needs_none(state: State) -> str:
    """Advice for a file that needs no conversion; "" for all others."""
    if any(name.startswith("roi_heads.box_predictor.") for name in state):
        return " Detectron2's names, as our own and official Detic's files have: set MODEL.WEIGHTS to it as it is."
    if "visual.conv1.weight" in state:
        return " CLIP's names: set MODEL.IMAGE_ENCODER.PRETRAINED to it as it is."
    return ""
