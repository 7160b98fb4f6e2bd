"""The 65 concepts of the mini benchmark (48 base, 17 novel, as OV-COCO splits them), their captions and tags.

Each concept is one OpenMoji drawing. A novel concept has base concepts of the same kind (dog: horse and sheep; bus: car
and truck), so their names lie near each other for a text tower. The photos in the background show no concept. Some
captions imitate the web, others annotators. Tags are read from captions.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np


class Concept(NamedTuple):
    """One concept: ``code`` is the emoji's code point in hexadecimal, as OpenMoji names its files."""

    name: str
    code: str
    plural: str
    synonyms: tuple[str, ...]
    novel: bool = False


def plural_of(noun: str) -> str:
    """The regular English plural, which is right for all synonyms below."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


NOVEL = True

# In the order of the category ids, which start at 1.
CONCEPTS = (
    Concept("horse", "1F40E", "horses", ("stallion", "mare")),
    Concept("dog", "1F415", "dogs", ("hound", "pup"), NOVEL),
    Concept("sheep", "1F411", "sheep", ("ewe", "lamb")),
    Concept("cow", "1F404", "cows", ("heifer", "dairy cow"), NOVEL),
    Concept("pig", "1F416", "pigs", ("hog", "piglet")),
    Concept("rabbit", "1F407", "rabbits", ("hare",)),
    Concept("elephant", "1F418", "elephants", ("african elephant",), NOVEL),
    Concept("giraffe", "1F992", "giraffes", ("tall giraffe",)),
    Concept("zebra", "1F993", "zebras", ("striped zebra",)),
    Concept("camel", "1F42A", "camels", ("desert camel",)),
    Concept("tiger", "1F405", "tigers", ("bengal tiger", "tiger cub")),
    Concept("lion", "1F981", "lions", ("lion head",), NOVEL),
    Concept("bear", "1F43B", "bears", ("brown bear", "grizzly")),
    Concept("duck", "1F986", "ducks", ("mallard",)),
    Concept("penguin", "1F427", "penguins", ("emperor penguin",), NOVEL),
    Concept("owl", "1F989", "owls", ("barn owl", "night owl")),
    Concept("turtle", "1F422", "turtles", ("tortoise",)),
    Concept("crab", "1F980", "crabs", ("king crab",)),
    Concept("lobster", "1F99E", "lobsters", ("langoustine",), NOVEL),
    Concept("bee", "1F41D", "bees", ("honeybee", "bumblebee")),
    Concept("car", "1F697", "cars", ("automobile", "hatchback")),
    Concept("bus", "1F68C", "buses", ("coach", "tour bus"), NOVEL),
    Concept("truck", "1F69A", "trucks", ("van", "delivery van")),
    Concept("train", "1F682", "trains", ("locomotive", "steam engine")),
    Concept("bicycle", "1F6B2", "bicycles", ("bike",)),
    Concept("airplane", "2708", "airplanes", ("plane", "jet"), NOVEL),
    Concept("helicopter", "1F681", "helicopters", ("chopper",)),
    Concept("sailboat", "26F5", "sailboats", ("sailing boat", "yacht")),
    Concept("skateboard", "1F6F9", "skateboards", ("longboard",), NOVEL),
    Concept("kite", "1FA81", "kites", ("toy kite",)),
    Concept("apple", "1F34E", "apples", ("red apple",)),
    Concept("banana", "1F34C", "bananas", ("ripe banana",)),
    Concept("lemon", "1F34B", "lemons", ("citron",), NOVEL),
    Concept("pear", "1F350", "pears", ("green pear",)),
    Concept("strawberry", "1F353", "strawberries", ("garden strawberry",)),
    Concept("pineapple", "1F34D", "pineapples", ("ananas",)),
    Concept("tomato", "1F345", "tomatoes", ("pomodoro",), NOVEL),
    Concept("carrot", "1F955", "carrots", ("garden carrot",)),
    Concept("pizza", "1F355", "pizzas", ("pizza slice",)),
    Concept("hamburger", "1F354", "hamburgers", ("burger", "cheeseburger")),
    Concept("donut", "1F369", "donuts", ("doughnut",)),
    Concept("cake", "1F382", "cakes", ("birthday cake", "gateau"), NOVEL),
    Concept("cookie", "1F36A", "cookies", ("biscuit",)),
    Concept("croissant", "1F950", "croissants", ("butter croissant",)),
    Concept("chair", "1FA91", "chairs", ("dining chair",)),
    Concept("couch", "1F6CB", "couches", ("sofa", "settee"), NOVEL),
    Concept("bed", "1F6CF", "beds", ("single bed",)),
    Concept("clock", "23F0", "clocks", ("alarm clock",)),
    Concept("book", "1F4D5", "books", ("hardback", "paperback")),
    Concept("laptop", "1F4BB", "laptops", ("notebook computer",)),
    Concept("keyboard", "2328", "keyboards", ("computer keyboard",), NOVEL),
    Concept("television", "1F4FA", "televisions", ("tv", "flat screen")),
    Concept("backpack", "1F392", "backpacks", ("rucksack",)),
    Concept("umbrella", "2602", "umbrellas", ("parasol",), NOVEL),
    Concept("handbag", "1F45C", "handbags", ("purse",)),
    Concept("key", "1F511", "keys", ("door key",)),
    Concept("hammer", "1F528", "hammers", ("claw hammer",)),
    Concept("axe", "1FA93", "axes", ("hatchet",), NOVEL),
    Concept("bucket", "1FAA3", "buckets", ("pail",)),
    Concept("teapot", "1FAD6", "teapots", ("tea kettle",)),
    Concept("shoe", "1F45F", "shoes", ("sneaker", "running shoe")),
    Concept("guitar", "1F3B8", "guitars", ("electric guitar",)),
    Concept("violin", "1F3BB", "violins", ("fiddle",), NOVEL),
    Concept("drum", "1F941", "drums", ("snare drum",)),
    Concept("trumpet", "1F3BA", "trumpets", ("bugle", "cornet")),
)

NAMES = tuple(concept.name for concept in CONCEPTS)

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
    """A noun with its article or number, and alone. It is a synonym in three of ten cases."""
    singular, plural = concept.name, concept.plural
    if rng.random() < 0.3:
        singular = concept.synonyms[rng.integers(len(concept.synonyms))]
        plural = plural_of(singular)
    if count > 1:
        return f"{NUMBERS[count]} {plural}", plural
    return f"{'an' if singular[0] in 'aeiou' else 'a'} {singular}", singular


def web_captions(
    concepts: Sequence[int], rng: np.random.Generator, *, known: Sequence[Concept] = CONCEPTS
) -> list[str]:
    """Five different captions of an object-centric image of ``concepts``, indices into ``known``.

    Each names the main object, the first one.
    Three of ten captions leave out a second concept. Some captions name one object in the plural, some are in title
    case, and some end in words that describe nothing in the image.
    """
    counts = Counter(concepts)
    captions = []
    for template in rng.choice(WEB_TEMPLATES, 5, replace=False):
        named = list(counts.items())
        if rng.random() < 0.3:
            named = named[:1]
        phrases, nouns = zip(*(_words(known[c], count, rng) for c, count in named), strict=True)
        if len(named) == 1 and rng.random() < 0.15:
            phrases = nouns = (known[named[0][0]].plural,)
        joint = JOINTS[rng.integers(len(JOINTS))]
        caption = str(template).format(x=joint.join(phrases), n=" and ".join(nouns))
        if rng.random() < 0.35:
            caption += " " + WEB_EXTRAS[rng.integers(len(WEB_EXTRAS))]
        captions.append(caption.title() if rng.random() < 0.1 else caption)
    return captions


def scene_captions(concepts: Sequence[int], rng: np.random.Generator) -> list[str]:
    """Five different captions of a scene. Each lists all objects in a random order."""
    counts = list(Counter(concepts).items())
    captions = []
    for template in rng.choice(SCENE_TEMPLATES, 5, replace=False):
        order = rng.permutation(len(counts))
        phrases = [_words(CONCEPTS[counts[i][0]], counts[i][1], rng)[0] for i in order]
        listed = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
        captions.append(str(template).format(x=listed))
    return captions


@cache
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
