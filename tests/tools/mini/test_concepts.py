"""Mini captions name what the image shows; tags are read from them, word by word."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mini import concepts as mini
from mini.concepts import CONCEPTS, NAMES, caption_tags, plural_of


def forms_of(concept):
    return [concept.name, concept.plural, *concept.synonyms, *map(plural_of, concept.synonyms)]


def ids(*names):
    return sorted(NAMES.index(name) + 1 for name in names)


def tags_word_by_word(captions):
    """The slow reference: every form of every concept, sought as a run of whole words."""
    found = set()
    for caption in captions:
        words = re.split(r"\W+", caption.lower())
        for index, concept in enumerate(CONCEPTS, start=1):
            for form in map(str.split, forms_of(concept)):
                if any(words[i : i + len(form)] == form for i in range(len(words))):
                    found.add(index)
    return sorted(found)


def test_48_base_and_17_novel_concepts_between_them():
    assert (len(set(NAMES)), sum(concept.novel for concept in CONCEPTS)) == (65, 17)
    assert len({concept.code for concept in CONCEPTS}) == 65
    assert not any(a.novel and b.novel for a, b in zip(CONCEPTS, CONCEPTS[1:], strict=False))
    for index, concept in enumerate(CONCEPTS, start=1):  # no word of a concept names another
        assert 1 <= len(concept.synonyms) <= 2
        for word in forms_of(concept):
            assert caption_tags([word]) == [index], word
    assert caption_tags((*mini.WEB_TEMPLATES, *mini.WEB_EXTRAS, *mini.SCENE_TEMPLATES, *mini.NUMBERS)) == []


def test_tags_are_whole_words_of_either_number_in_any_case():
    assert caption_tags([]) == []
    assert caption_tags(["A Dog, two HORSES", "more dogs"]) == ids("horse", "dog")
    assert caption_tags(["a dogma about carpets, hotdogs, keyboards"]) == ids("keyboard")
    assert caption_tags(["pup", "(sofas)"]) == ids("dog", "couch")


@settings(max_examples=30, deadline=None)
@given(concepts=st.lists(st.integers(0, 64), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_captions_name_what_the_image_shows_and_nothing_else(concepts, seed):
    """Those of a scene name all objects; those of the web always the main one, of two at most."""
    scene = mini.scene_captions(concepts, np.random.default_rng(seed))
    web = mini.web_captions(concepts[:2], np.random.default_rng(seed))
    assert len(scene) == len(set(scene)) == len(web) == len(set(web)) == 5
    for caption in scene:
        assert caption_tags([caption]) == sorted({c + 1 for c in concepts}) == tags_word_by_word([caption])
    for caption in web:
        tags = caption_tags([caption])
        assert {concepts[0] + 1} <= set(tags) <= {c + 1 for c in concepts[:2]} and tags == tags_word_by_word([caption])


def test_some_captions_leave_the_second_object_out():
    rng = np.random.default_rng(0)
    tags = [caption_tags([c]) for _ in range(40) for c in mini.web_captions([4, 60], rng)]
    assert 0.2 < np.mean([t == [5] for t in tags]) < 0.4
    assert [5] in tags and [5, 61] in tags
