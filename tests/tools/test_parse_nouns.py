"""The rules that turn captions into nouns, one by one, on a small corpus whose every use is known."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parse_nouns import parse_nouns, singular, tokens

# Every noun stands bare often enough.
CORPUS = [
    "A man with a dog.", "The man is on a horse.", "A dog in the grass", "The grass by a tree.",
    "A cow near a cat.", "The tree has a leaf.", "A cat on the table.", "The table is in the kitchen",
    "A kitchen with a table", "The horse on the grass", "A cow is here", "A leaf on the grass",
    "A woman and a child", "The woman with a child", "A building by the river", "The building is by the river.",
    "A man walks to the river", "They walk to the tree", "He likes to walk with a dog", "A walk with the dog",
    "A red horse", "A red cow", "The red dog is here.", "A large red table", "The large building",
    "A large tree in the grass", "A large cow", "A large cat", "A large woman", "A large plate", "large dogs",
    "a hot dog on a plate", "A plate of food", "The plate on the table", "one hot dog and a plate",
    "The food on the plate", "a hot dog", "A dog running to a man", "A horse running in the grass",
    "The running man", "people riding", "the people", "two people", "the food in a kitchen", "riding a horse",
    "riding the cow",
]  # fmt: skip


@pytest.fixture(scope="module")
def counted():
    return parse_nouns(CORPUS, min_count=1)


def test_the_corpus_and_the_cut_by_frequency(counted):
    assert set(counted) == {
        "man", "dog", "horse", "grass", "tree", "leaf", "cow", "cat", "table", "kitchen", "woman", "child", "building",
        "river", "plate", "food", "hot dog", "person",
    }  # fmt: skip
    assert counted["dog"] == 10 and counted["hot dog"] == 3 and counted["man"] == 5 and counted["person"] == 3
    assert list(counted.values()) == sorted(counted.values(), reverse=True)
    least = sorted(counted.values())[len(counted) // 2]
    assert parse_nouns(CORPUS, min_count=least) == {n: c for n, c in counted.items() if c >= least}
    assert parse_nouns([], min_count=1) == {} and parse_nouns(CORPUS, min_count=100) == {}
    assert parse_nouns(CORPUS * 20) == {n: 20 * c for n, c in counted.items() if 20 * c >= 100}


@pytest.mark.parametrize(
    "caption, nouns",
    [
        ("Two dogs.", {"dog": 1}),
        ("MEN, women and children!", {"man": 1, "woman": 1, "child": 1}),
        ("leaves and trees", {"leaf": 1, "tree": 1}),
        ("dog dog dog", {"dog": 1}),  # a run of nouns names its last one
        ("a kitchen table", {"table": 1}),
        ("the man's dog", {"man": 1, "dog": 1}),
        ("the man’s dog", {"man": 1, "dog": 1}),
        ("a man riding a cow", {"man": 1, "cow": 1}),  # -ing ends a phrase
        ("a large building", {"building": 1}),  # unless it is a noun
        ("the dog walks across", {"dog": 1}),  # a verb
        ("a man likes dogs", {"man": 1, "dog": 1}),
        ("a red, large horse", {"horse": 1}),  # adjectives
        ("it is red", {}),
        ("2 hot dogs", {"dog": 1, "hot dog": 1}),  # a fixed pair, beside its head
        ("large dogs", {"dog": 1}),  # no fixed pair
        ("the front of a photo of a group of cats", {"cat": 1}),  # places, amounts and depictions
        ("a dog/cat (river)", {"dog": 1, "cat": 1, "river": 1}),
        ("an aardvark", {}),  # seen bare only once
        ("", {}),
        ("!!! 123", {}),
    ],
)
def test_one_more_caption(counted, caption, nouns):
    after = parse_nouns([*CORPUS, caption], min_count=1)
    assert {n: after[n] - counted.get(n, 0) for n in after if after[n] > counted.get(n, 0)} == nouns


BARE = ["a wug on it", "the wug is here"]


@pytest.mark.parametrize(
    "word, captions, is_noun",
    [
        ("wug", BARE, True),
        ("wug", ["a wug on it", "wugs"], False),  # bare once
        ("wug", [*BARE, "they wug", "to wug"], False),  # as often a verb
        ("wug", [*BARE, "they wug"], True),
        ("wug", [*BARE, *["wug on it"] * 99], False),  # bare in fewer than 1 of 50 uses
        ("wug", [*BARE, *["the wug and a cat"] * 99], True),
        ("wug", ["a wug, red cat on", "the wug and red cat on"], False),  # a comma ends a phrase before a determiner
        ("wug", ["a wug, a cat on", "the wug and the cat on"], True),
        ("blue", ["a blue dog", "the blue dog on", "a dog is", "the dog on"] * 5 + ["the blue on", "a blue is"], False),
    ],
)
def test_a_word_is_a_noun_by_its_bare_uses(word, captions, is_noun):
    assert (word in parse_nouns(captions, min_count=1)) == is_noun


@pytest.mark.parametrize(
    "plural, known, expected",
    [
        ("dogs", {"dog": 9}, "dog"), ("dogs", {}, "dogs"), ("buses", {"bus": 3}, "bus"), ("bus", {"bu": 9}, "bus"),
        ("glass", {"glas": 9}, "glass"), ("knives", {"knife": 2}, "knife"), ("leaves", {"leaf": 2, "leave": 9}, "leaf"),
        ("waves", {"wave": 2}, "wave"), ("cookies", {"cookie": 2}, "cookie"), ("berries", {"berry": 2}, "berry"),
        ("people", {}, "person"), ("firemen", {"fireman": 1}, "fireman"), ("men", {}, "man"),
        ("scissors", {"scissor": 9}, "scissors"), ("dog", {"dog": 1}, "dog"), ("s", {}, "s"),
        ("dogs", {"dogs": 100, "dog": 4}, "dogs"), ("dogs", {"dogs": 100, "dog": 5}, "dog"),  # a misspelling is rarer
    ],
)  # fmt: skip
def test_singular(plural, known, expected):
    assert singular(plural, Counter(known)) == expected


def test_tokens():
    assert tokens("A T-shirt, 12 dogs' and it's “Über”!") == [
        "a", "t-shirt", ",", "two", "dogs", "'", "and", "it", "'s", "“", "über", "”", ".", ".",
    ]  # fmt: skip
    assert tokens("") == ["."]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6), st.randoms(use_true_random=False))
def test_any_text_and_any_order(captions, random):
    """Nothing raises, nouns are words of the captions, and the order of captions does not matter."""
    captions = [*captions, *CORPUS]
    nouns = parse_nouns(captions, min_count=1)
    random.shuffle(captions)
    assert list(parse_nouns(captions, min_count=1).items()) == list(nouns.items())
    assert all(count >= 1 and noun == noun.lower().strip() for noun, count in nouns.items())
