"""Mini captions name what the image shows; tags are read from them, word by word."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mini import concepts as mini
from mini.concepts import CONCEPTS, NAMES, caption_tags, plural_of


def _id(name):
    return NAMES.index(name) + 1


# ------------------------------------------------------------------------------------------------- concepts


def test_48_base_and_17_novel_concepts_between_them():
    assert (len(NAMES), sum(concept.novel for concept in CONCEPTS)) == (65, 17)
    assert len(set(NAMES)) == 65
    assert len({concept.code for concept in CONCEPTS}) == 65
    neighbours = zip(CONCEPTS, CONCEPTS[1:], strict=False)
    assert not any(a.novel and b.novel for a, b in neighbours)


def test_no_word_of_a_concept_speaks_of_another():
    for index, concept in enumerate(CONCEPTS, start=1):
        assert 1 <= len(concept.synonyms) <= 2
        for word in (concept.name, concept.plural, *concept.synonyms, *map(plural_of, concept.synonyms)):
            assert caption_tags([word]) == [index], word


def test_no_template_speaks_of_a_concept():
    words = (*mini.WEB_TEMPLATES, *mini.WEB_EXTRAS, *mini.SCENE_TEMPLATES, *mini.NUMBERS)
    assert caption_tags(words) == []


# --------------------------------------------------------------------------------------------- tags, captions


def test_tags_are_whole_words_of_either_number_in_any_case():
    assert caption_tags([]) == []
    assert caption_tags(["A Dog, two HORSES", "more dogs"]) == sorted([_id("horse"), _id("dog")])
    assert caption_tags(["a dogma about carpets, hotdogs, keyboards"]) == [_id("keyboard")]
    assert caption_tags(["pup", "(sofas)"]) == sorted([_id("dog"), _id("couch")])


def _tags_word_by_word(captions):
    """The slow reference: every form of every concept, sought as a run of whole words."""
    found = set()
    for caption in captions:
        words = re.split(r"\W+", caption.lower())
        for index, c in enumerate(CONCEPTS, start=1):
            forms = [c.name, c.plural, *c.synonyms, *map(plural_of, c.synonyms)]
            for form in (f.split() for f in forms):
                if any(words[i : i + len(form)] == form for i in range(len(words))):
                    found.add(index)
    return sorted(found)


@settings(max_examples=30, deadline=None)
@given(concepts=st.lists(st.integers(0, 64), min_size=1, max_size=2), seed=st.integers(0, 2**32))
def test_web_captions_name_the_main_object_always_and_nothing_else(concepts, seed):
    captions = mini.web_captions(concepts, np.random.default_rng(seed))
    assert len(captions) == len(set(captions)) == 5
    for caption in captions:
        tags = caption_tags([caption])
        assert concepts[0] + 1 in tags
        assert set(tags) <= {c + 1 for c in concepts}
        assert tags == _tags_word_by_word([caption])


@settings(max_examples=30, deadline=None)
@given(concepts=st.lists(st.integers(0, 64), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_scene_captions_list_every_object(concepts, seed):
    captions = mini.scene_captions(concepts, np.random.default_rng(seed))
    assert len(captions) == len(set(captions)) == 5
    for caption in captions:
        assert caption_tags([caption]) == sorted({c + 1 for c in concepts}) == _tags_word_by_word([caption])


def test_some_captions_leave_the_second_object_out():
    rng = np.random.default_rng(0)
    tags = [caption_tags([c]) for _ in range(40) for c in mini.web_captions([4, 60], rng)]
    assert 0.2 < np.mean([t == [5] for t in tags]) < 0.4
    assert [5] in tags and [5, 61] in tags
