"""Tag rules: the released rule with its blind spots, against a slow copy of its definition; the word rule."""

import pickle
import re
import sys
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.categories import COCO_CATEGORIES, COCO_IDS, LVIS_NAMES
from clim.data.words import plurals, spoken_name, word_rule
from clim.errors import UserError
from tags import all_words, lvis_table, lvis_words, released_rule, released_tags, tagger_rule, word_tags

ID = {name: identifier for identifier, name in COCO_CATEGORIES}


def released(*captions):
    return released_tags(captions, lvis_words())


def words(*captions):
    return word_tags(captions, all_words())


def ids(*names):
    return sorted(ID[name] for name in names)


# ---- the words ----


def test_words_of_a_class():
    """COCO's own name comes first in ``all_words``, where LVIS lacks it."""
    for name, lvis, own in (
        ("person", ("person", "baby", "child", "boy", "girl", "man", "woman", "human"), ()),
        ("skis", ("ski",), ("skis",)), ("cow", ("cow",), ()), ("handbag", ("handbag", "purse", "pocketbook"), ()),
        ("suitcase", ("suitcase", "baggage", "luggage"), ()), ("hot dog", ("sausage",), ("hot_dog",)),
        ("toaster", ("toaster",), ()), ("laptop", ("laptop_computer", "notebook_computer"), ("laptop",)),
        ("tennis racket", ("tennis_racket",), ()),
    ):  # fmt: skip
        assert lvis_words()[ID[name]] == lvis and all_words()[ID[name]] == own + lvis
    assert tuple(lvis_words()) == tuple(all_words()) == COCO_IDS and all(lvis_words().values())


def test_spoken_names_and_plurals():
    spoken = {
        "tennis_racket": "tennis racket", "car_(automobile)": "car", "double-decker": "double-decker",
        "Bow_(weapon) tail": "bow", "(nothing)": "",
    }  # fmt: skip
    assert {word: spoken_name(word) for word in spoken} == spoken
    forms = {
        "dog": ("dogs",), "bench": ("benches",), "wine glass": ("wine glasses",), "baby": ("babies",),
        "boy": ("boys",), "computer mouse": ("computer mice", "computer mouses"), "person": ("people", "persons"),
    }  # fmt: skip
    assert {name: plurals(name) for name in forms} == forms


# ---- the released rule ----


@pytest.mark.parametrize(
    "captions, names",
    [
        (["a photo of a dog on grass"], ["dog"]), (["Dog on grass"], ["dog"]), (["grass under a DOG"], ["dog"]),
        (["a dog."], []), (["a dog, asleep"], []), (["two dogs on grass"], []), (["a dog\nasleep"], []),
        (["dog"], []), (["dog "], ["dog"]),  # a text that is nothing but the name
        (["a hotdog stand in a catalogue of cars"], []),
        (["grass and a teddy", "bear on a shelf"], ["teddy bear", "bear"]),  # a name may span two captions
        (["a tennis racket here"], ["tennis racket"]), (["a tennis_racket here"], []),
        (["a mouse here"], ["mouse"]), (["a train here"], ["train"]),
        (["a hot dog on a plate"], ["dog"]), (["a sausage on a plate"], ["hot dog"]),
        (["a pair of skis here"], []), (["one ski here"], ["skis"]), (["a laptop here"], []), (["the people here"], []),
        (["a dog and a woman", "a man and a cat here"], ["person", "cat", "dog"]),
    ],
)  # fmt: skip
def test_released(captions, names):
    assert released(*captions) == ids(*names)


def test_pairs_of_lvis_know_both_kinds_of_bow():
    """detic §4: "(" and what follows is cut."""
    table, names = lvis_table(), dict(zip(lvis_table(), LVIS_NAMES, strict=True))
    found = {names[key] for key in released_tags(["a bow on an alarm clock and a ping-pong ball"], table)}
    assert found == {
        "bow_(weapon)", "bow_(decorative_ribbons)", "alarm_clock", "clock", "ping-pong_ball", "ball"
    }  # fmt: skip


def test_no_captions_no_tags():
    for rule in (released_tags, word_tags):
        assert rule([], lvis_words()) == rule([""], lvis_words()) == rule(["a dog here"], {}) == []


WORDS = st.sampled_from(["dog", "Cat", "hot", "dogs", "teddy", "bear", "ski", "dog.", "tv", "set", "", "(x)"])
TEXTS = st.lists(st.lists(WORDS, max_size=5).map(" ".join), max_size=3)


@given(captions=TEXTS)
@settings(max_examples=200, deadline=None)
def test_released_against_its_definition_as_a_regular_expression(captions):
    text = " ".join(captions).lower()
    expected = []
    for identifier, synonyms in lvis_words().items():
        for synonym in synonyms:
            name = re.escape(re.sub(r"\(.*", "", synonym.replace("_", " ")).strip())
            # Inside between spaces, or at one end of the text with a space on the other side.
            if re.search(rf" {name} |\A{name} | {name}\Z", text):
                expected.append(identifier)
                break
    assert released(*captions) == expected


NOUN = st.lists(st.sampled_from(["dog", "hot", "bear", "ski", "tv", "set", "", "x"]), max_size=3).map(" ".join)
NOUNS = st.lists(st.one_of(NOUN, NOUN.map(lambda noun: noun.replace(" ", "_") + "(x) y")), max_size=12)


@given(captions=TEXTS, nouns=NOUNS)
@settings(max_examples=300, deadline=None)
def test_nouns_are_found_as_by_a_search_for_each(captions, nouns):
    """vldet §2: the slow search, noun by noun; a noun that is listed twice counts twice."""
    text, expected = " ".join(captions).lower(), []
    for i, noun in enumerate(nouns, start=1):
        padded = f" {noun.replace('_', ' ').partition('(')[0].strip()} "
        if padded in text or text.startswith(padded[1:]) or text.endswith(padded[:-1]):
            expected.append(i)
    rule = released_rule({i: (noun,) for i, noun in enumerate(nouns, start=1)})
    assert rule(captions) == pickle.loads(pickle.dumps(rule))(captions) == expected


def test_the_tagger_leaves_nouns_of_the_first_caption(monkeypatch):
    """vldet §2: what NLTK calls NN, NNS or NNP, joined by spaces, so that names may meet ("dog street")."""
    rule = tagger_rule({1: ("dog",), 2: ("dog street",), 3: ("hot",), 4: ("cat",)})
    nltk = ModuleType("nltk")
    nltk.word_tokenize = lambda text: re.findall(r"\w+|[^\w\s]", text)
    nltk.pos_tag = lambda words: [(w, {"dog": "NN", "street": "NNS", "hot": "JJ"}.get(w, "IN")) for w in words]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    assert rule(["A hot DOG, on street.", "cat"]) == [1, 2] and rule(["dog"]) == [1] and rule([]) == rule(["on"]) == []

    def lacking(words):
        raise LookupError("punkt_tab")

    nltk.pos_tag = lacking
    for module in (nltk, None):
        monkeypatch.setitem(sys.modules, "nltk", module)
        with pytest.raises(UserError, match="--tag-rule tagger needs NLTK and its data"):
            rule(["a dog"])


# ---- the word rule ----


@pytest.mark.parametrize(
    "captions, names",
    [
        (["dog"], ["dog"]), (["A dog."], ["dog"]), (['two "DOGS"!'], ["dog"]), (["the dog's bed"], ["dog", "bed"]),
        (["men, women and children"], ["person"]),
        (["knives on benches, buses, babies"], ["knife", "bench", "bus", "person"]),
        (["a catalogue of a man-made carpet, dogged"], []), (["snake_cat"], ["cat"]),  # an underscore is no letter
        (["two hot dogs"], ["hot dog"]), (["a teddy bear and a bear"], ["bear", "teddy bear"]),
        (["a hot, dog"], ["dog"]), (["a teddy", "bear"], ["bear"]), (["a teddy-bear"], ["teddy bear"]),
        (["a double decker"], ["bus"]), (["double-deckers"], ["bus"]),
    ],
)  # fmt: skip
def test_words(captions, names):
    assert words(*captions) == ids(*names)


@given(captions=TEXTS)
@settings(max_examples=100, deadline=None)
def test_words_does_not_depend_on_the_order_of_captions(captions):
    assert words(*captions) == words(*reversed(captions)) == sorted(set(words(*captions)))
    rule = pickle.loads(pickle.dumps(word_rule(dict(reversed(all_words().items())))))
    assert rule(captions) == words(*captions)[::-1]  # the order of the table
