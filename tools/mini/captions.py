"""The captions of the mini benchmark, as the web and as annotators write them, and their tags."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mini.concepts import CONCEPTS, Concept, plural_of

# {x} takes "a dog and two owls", {n} takes "dog and owls".
WEB_TEMPLATES = (
    "a photo of {x}", "{x}, close-up", "this is {x}", "we saw {x} today", "{x} seen from the side",
    "drawing of {x} in bright colours", "i made {x} for my sister", "looking for {x}? click here",
    "picture of {x} on a nice background", "how to draw {x} step by step", "my little world: {x}",
    "{n} clip art", "{n} sticker, glossy", "buy {n} online", "{n} - free download", "best {n} of 2019",
    "{n} vector illustration", "cute {n} poster", "{n} icon set", "top 10: {n}",
    "{n} wallpaper for your phone",
)  # fmt: skip
WEB_EXTRAS = (
    "| free shipping", "(high resolution)", "#summer #fun", "- part 2", "by anna from lisbon", "*new*",
    "for kids and parents", "- see our blog for the recipe", "| home and garden", "best price guaranteed",
    "after the football match", "made of wood", "on a rainy monday",
)  # fmt: skip
SCENE_TEMPLATES = (
    "a picture with {x}", "{x} in a busy scene", "you can see {x} here", "several things: {x}",
    "{x} all in one place", "a collage of {x}", "there is {x} in this image", "{x} scattered around",
)  # fmt: skip
JOINTS = (" and ", " with ", " next to ", " & ", ", ")
NUMBERS = ("", "", "two", "three", "four", "five", "six")


def _words(concept: Concept, count: int, rng: np.random.Generator) -> tuple[str, str]:
    """The same noun with its article or number, and bare; a synonym in three of ten cases."""
    singular, plural = concept.name, concept.plural
    if rng.random() < 0.3:
        singular = concept.synonyms[rng.integers(len(concept.synonyms))]
        plural = plural_of(singular)
    if count > 1:
        return f"{NUMBERS[count]} {plural}", plural
    return f"{'an' if singular[0] in 'aeiou' else 'a'} {singular}", singular


def web_captions(concepts: Sequence[int], rng: np.random.Generator) -> list[str]:
    """Five different captions of an object-centric image; each names the main object, ``concepts[0]``.

    A second concept goes unmentioned in three of ten captions. Some captions name one object in the
    plural, some are in title case, some end in words that describe nothing in the image.
    """
    counts = Counter(concepts)
    captions = []
    for template in rng.choice(WEB_TEMPLATES, 5, replace=False):
        named = list(counts.items())
        if rng.random() < 0.3:
            named = named[:1]
        phrases, nouns = zip(*(_words(CONCEPTS[c], count, rng) for c, count in named), strict=True)
        if len(named) == 1 and rng.random() < 0.15:
            phrases = nouns = (CONCEPTS[named[0][0]].plural,)
        joint = JOINTS[rng.integers(len(JOINTS))]
        caption = str(template).format(x=joint.join(phrases), n=" and ".join(nouns))
        if rng.random() < 0.35:
            caption += " " + WEB_EXTRAS[rng.integers(len(WEB_EXTRAS))]
        captions.append(caption.title() if rng.random() < 0.1 else caption)
    return captions


def scene_captions(concepts: Sequence[int], rng: np.random.Generator) -> list[str]:
    """Five different captions of a scene; each lists all its objects in a random order."""
    counts = list(Counter(concepts).items())
    captions = []
    for template in rng.choice(SCENE_TEMPLATES, 5, replace=False):
        order = rng.permutation(len(counts))
        phrases = [_words(CONCEPTS[counts[i][0]], counts[i][1], rng)[0] for i in order]
        listed = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
        captions.append(str(template).format(x=listed))
    return captions


@lru_cache(maxsize=1)
def _tag_pattern() -> tuple[re.Pattern, dict[str, int]]:
    ids = {}
    for category_id, concept in enumerate(CONCEPTS, start=1):
        forms = [concept.name, concept.plural, *concept.synonyms, *map(plural_of, concept.synonyms)]
        ids.update(dict.fromkeys(forms, category_id))
    longest_first = sorted(ids, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)"), ids


def caption_tags(captions: Sequence[str]) -> list[int]:
    """Sorted category ids (from 1) whose name or synonym is a word of a caption, in either number."""
    pattern, ids = _tag_pattern()
    return sorted({ids[word] for caption in captions for word in pattern.findall(caption.lower())})
