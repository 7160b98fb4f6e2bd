"""Tags of captions: LVIS's words for its own and for COCO's classes, and three rules from text to ids.

``released`` is the rule of the published numbers (Detic's ``captions_train2017_tags_allcaps.json``), with its mistakes.
``tagger`` is the same on nouns alone (VLDet's for Conceptual Captions). ``words`` reads words, not characters. All take
the captions of one image and a table {id: words} of classes or nouns, and return ids in the table's order. LVIS writes
"_" for a space and brackets for remarks ("kite_(toy)").
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial

from clim.data.words import Table, spoken_name, word_rule
from clim.errors import UserError

# WordNet synsets of COCO's classes (``coco_to_synset`` of lvis-api) that are not "name.n.01". LVIS v1 has no frank.n.02
# for "hot dog". Detic takes sausage.n.01, so "hot dog" is not among the words of that class.
SYNSETS = {
    "fire hydrant": "fireplug.n.01", "cow": "beef.n.01", "handbag": "bag.n.04", "tie": "necktie.n.01",
    "suitcase": "bag.n.06", "skis": "ski.n.01", "sports ball": "ball.n.06", "kite": "kite.n.03",
    "wine glass": "wineglass.n.01", "bowl": "bowl.n.03", "banana": "banana.n.02", "hot dog": "sausage.n.01",
    "donut": "doughnut.n.02", "cake": "cake.n.03", "couch": "sofa.n.01", "potted plant": "pot.n.04",
    "toilet": "toilet.n.02", "tv": "television_receiver.n.01", "mouse": "mouse.n.04",
    "remote": "remote_control.n.01", "keyboard": "computer_keyboard.n.01", "cell phone": "cellular_telephone.n.01",
    "microwave": "microwave.n.02", "toaster": "toaster.n.02", "refrigerator": "electric_refrigerator.n.01",
    "teddy bear": "teddy.n.01", "hair drier": "hand_blower.n.01",
}  # fmt: skip


@cache
def lvis_words() -> dict[int, tuple[str, ...]]:
    """COCO class id → the words of LVIS v1 for its synset: the table of the released rule (Detic)."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES  # takes seconds

    from clim.data.categories import COCO_CATEGORIES

    words = {category["synset"]: tuple(category["synonyms"]) for category in LVIS_CATEGORIES}
    return {key: words[SYNSETS.get(name, f"{name.replace(' ', '_')}.n.01")] for key, name in COCO_CATEGORIES}


@cache
def lvis_table() -> dict[int, tuple[str, ...]]:
    """LVIS v1 class id → its synonyms: the table for pairs of OV-LVIS (Detic)."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    return {category["id"]: tuple(category["synonyms"]) for category in LVIS_CATEGORIES}


def all_words() -> dict[int, tuple[str, ...]]:
    """:func:`lvis_words`, with COCO's name in front if LVIS lacks it ("hot dog", "laptop")."""
    from clim.data.categories import COCO_CATEGORIES

    words = lvis_words()
    names = ((key, name.replace(" ", "_")) for key, name in COCO_CATEGORIES)
    return {key: words[key] if name in words[key] else (name, *words[key]) for key, name in names}


def released_tags(captions: Sequence[str], table: Table) -> list[int]:
    """Class ids by the released rule, from lower-case captions joined by spaces.

    A name counts between two spaces, at the start before a space, or at the end after a space. So the rule misses
    plurals and names beside punctuation ("a dog."), and finds a dog in "hot dog". Source: Detic,
    tools/get_cc_tags.py with ``--allcaps``; for CC3M one caption, the first (detic §4).
    """
    return released_rule(table)(captions)


def released_rule(table: Table) -> Callable[[Sequence[str]], list[int]]:
    """:func:`released_tags` for one table: for millions of captions."""
    return _finder(tuple((key, tuple(words)) for key, words in table.items()))


@lru_cache(maxsize=8)
def _finder(rows: tuple[tuple[int, tuple[str, ...]], ...]) -> Callable[[Sequence[str]], list[int]]:
    named: dict[str, list[int]] = {}  # places in the table: LVIS has two kinds of "bow"
    for place, (_, words) in enumerate(rows):
        for word in words:
            named.setdefault(spoken_name(word), []).append(place)
    lengths = {name.count(" ") + 1 for name in named}
    return partial(_find, named, lengths, [key for key, _ in rows])  # other processes can receive a partial


def _find(named: Mapping[str, list[int]], lengths: set[int], keys: Sequence[int], captions: Sequence[str]) -> list[int]:
    words, found = " ".join(captions).lower().split(" "), set()
    for length in lengths - {len(words)}:  # a name that is the whole text has no space beside it
        for start in range(len(words) - length + 1):
            found.update(named.get(" ".join(words[start : start + length]), ()))
    return [keys[place] for place in sorted(found)]


def tagger_rule(table: Table) -> Callable[[Sequence[str]], list[int]]:
    """The released rule on :func:`noun_words` of the first caption: VLDet's for Conceptual Captions (vldet §2)."""
    return partial(_find_nouns, released_rule(table))


def _find_nouns(find: Callable[[Sequence[str]], list[int]], captions: Sequence[str]) -> list[int]:
    return find([noun_words(caption) for caption in captions[:1]])


def noun_words(caption: str) -> str:
    """The words of a caption that NLTK's tagger takes for nouns, in lower case, with a space on both sides of each."""
    try:
        from nltk import pos_tag, word_tokenize

        tagged = pos_tag(word_tokenize(caption.lower()))
    except (ImportError, LookupError) as error:  # NLTK raises LookupError for missing data
        raise UserError(
            "--tag-rule tagger needs NLTK and its data: pip install nltk, then python -m nltk.downloader punkt_tab "
            "averaged_perceptron_tagger_eng."
        ) from error
    return " ".join(["", *(word for word, kind in tagged if kind.startswith("NN")), ""])


def word_tags(captions: Sequence[str], table: Table) -> list[int]:
    """Class ids by whole words: plurals count, punctuation does not matter, and the longest name wins.

    If the table has these names, "hot dogs" is not a dog, and "teddy bear" not a bear. A name lies in one caption.
    Words that are not in the table ("motorbike") do not count.
    """
    return word_rule(table)(captions)
