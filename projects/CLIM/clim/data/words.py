"""Classes that captions name as whole words: plurals count, punctuation does not matter, and the longest name wins."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial

Table = Mapping[int, Sequence[str]]  # {class: its words}

_IRREGULAR_PLURALS = {
    "person": ("people", "persons"), "child": ("children",), "man": ("men",), "woman": ("women",),
    "knife": ("knives",), "mouse": ("mice", "mouses"), "sheep": ("sheep",),
}  # fmt: skip
# A word may contain hyphens ("double-decker"). A punctuation mark stands alone, so no name crosses it.
_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]")


@cache
def spoken_name(word: str) -> str:
    """An LVIS word as captions write it: lower case, "_" is a space, without text from "(" on."""
    return word.replace("_", " ").split("(")[0].lower().strip()


def word_rule(table: Table) -> Callable[[Sequence[str]], list[int]]:
    """A function: captions → the classes that they name, in the table's order. Other processes can receive it.

    If the table has these names, "hot dogs" is not a dog, and "teddy bear" not a bear. A name lies in one caption.
    """
    phrases, longest = _phrases(tuple((key, tuple(words)) for key, words in table.items()))
    return partial(_find_words, phrases, longest, {key: place for place, key in enumerate(table)})


def _find_words(
    phrases: Mapping[tuple[str, ...], set[int]], longest: int, places: Mapping[int, int], captions: Sequence[str]
) -> list[int]:
    found: set[int] = set()
    for caption in captions:
        tokens = _TOKEN.findall(caption.lower())
        start = 0
        while start < len(tokens):
            for length in range(longest, 0, -1):
                if keys := phrases.get(tuple(tokens[start : start + length])):
                    found |= keys
                    start += length
                    break
            else:
                start += 1
    return sorted(found, key=places.__getitem__)


def plurals(name: str) -> tuple[str, ...]:
    """The regular or listed plurals of a name's last word ("park bench" -> "park benches")."""
    head, _, last = name.rpartition(" ")
    if last in _IRREGULAR_PLURALS:
        forms = _IRREGULAR_PLURALS[last]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        forms = (last + "es",)
    elif re.search(r"[^aeiou]y$", last):
        forms = (last[:-1] + "ies",)
    else:
        forms = (last + "s",)
    return tuple(f"{head} {form}".strip() for form in forms)


@lru_cache(maxsize=8)
def _phrases(rows: tuple[tuple[int, tuple[str, ...]], ...]) -> tuple[dict[tuple[str, ...], set[int]], int]:
    """{tokens of a name, its plural or hyphenated form: category ids}, and the token count of the longest name."""
    phrases: dict[tuple[str, ...], set[int]] = {}
    for key, words in rows:
        for name in map(spoken_name, words):
            for form in (name, *plurals(name)):
                for variant in {form, form.replace(" ", "-"), form.replace("-", " ")}:
                    phrases.setdefault(tuple(_TOKEN.findall(variant)), set()).add(key)
    return phrases, max(map(len, phrases), default=0)
