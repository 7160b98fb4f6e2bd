"""Which categories an image's captions name: two rules from text to category ids.

``released`` is the rule behind the published numbers (Detic's ``captions_train2017_tags_allcaps.json``), kept
with its blind spots; ``words`` reads words instead of characters. Both take the captions of one image and a
table {category id: LVIS words}, and return category ids in the table's order.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache

Table = Mapping[int, Sequence[str]]

_IRREGULAR_PLURALS = {
    "person": ("people", "persons"),
    "child": ("children",),
    "man": ("men",),
    "woman": ("women",),
    "knife": ("knives",),
    "mouse": ("mice", "mouses"),
    "sheep": ("sheep",),
}
# A word may hold hyphens ("double-decker"); a punctuation mark stands alone, so no name reaches across it.
_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]")


@cache
def spoken_name(word: str) -> str:
    """LVIS word as a caption writes it: "_" is a space, text from "(" on is cut, lower case, stripped."""
    return word.replace("_", " ").split("(")[0].lower().strip()


def released_tags(captions: Sequence[str], table: Table) -> list[int]:
    """Category ids named by the lower-cased captions joined by spaces, by the released rule.

    A name counts where it stands between two spaces, opens the text before a space or closes it after a
    space. So plurals and names beside punctuation ("a dog.") are missed, and "hot dog" counts as a dog.
    Source: Detic, tools/get_cc_tags.py with ``--allcaps``.
    """
    text = " ".join(captions).lower()

    def named(name: str) -> bool:
        return f" {name} " in text or text.startswith(f"{name} ") or text.endswith(f" {name}")

    return [key for key, words in table.items() if any(named(spoken_name(word)) for word in words)]


def word_tags(captions: Sequence[str], table: Table) -> list[int]:
    """Category ids named by whole words: plurals count, punctuation hides nothing, the longest name wins.

    "hot dogs" is no dog and "teddy bear" no bear when the table has these names; a name never spans two
    captions. Only plurals of words in the table are known; other words for a thing ("bike" is there,
    "motorbike" is not) are not.
    """
    phrases, longest = _phrases(tuple((key, tuple(words)) for key, words in table.items()))
    found: set[int] = set()
    for caption in captions:
        tokens = _TOKEN.findall(caption.lower())
        start = 0
        while start < len(tokens):
            step = 1
            for length in range(longest, 0, -1):
                keys = phrases.get(tuple(tokens[start : start + length]))
                if keys:
                    found |= keys
                    step = length
                    break
            start += step
    return [key for key in table if key in found]


def plurals(name: str) -> tuple[str, ...]:
    """Regular or listed plural forms of a name, taken at its last word ("bench" -> "benches")."""
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
    """{tokens of a name, plural or hyphenated variant: category ids}, and the longest name's token count."""
    phrases: dict[tuple[str, ...], set[int]] = {}
    for key, words in rows:
        for name in map(spoken_name, words):
            for form in (name, *plurals(name)):
                for variant in {form, form.replace(" ", "-"), form.replace("-", " ")}:
                    phrases.setdefault(tuple(_TOKEN.findall(variant)), set()).add(key)
    return phrases, max(map(len, phrases), default=0)


TAG_RULES: dict[str, Callable[[Sequence[str], Table], list[int]]] = {"released": released_tags, "words": word_tags}
