from hypothesis import given, settings
from hypothesis import strategies as st

from clim.text.prompts import PROMPTS, TEMPLATES, a_name, ensemble


def test_a_name_keeps_the_raw_name():
    assert a_name("apple") == "a apple"
    assert a_name("aerosol_can") == "a aerosol_can"


def test_templates_are_63_different_sentences():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 63
    assert all(template.endswith("{name}.") or "{name} in the scene." in template for template in TEMPLATES)


def test_ensemble_of_a_consonant():
    texts = ensemble("dog")
    assert len(texts) == len(set(texts)) == 63
    assert texts[:5] == [
        "There is a dog in the scene.",
        "There is the dog in the scene.",
        "This is a photo of a dog in the scene.",
        "This is a photo of the dog in the scene.",
        "This is a photo of one dog in the scene.",
    ]
    for text in (
        "itap of my dog.",
        "This is a photo of many dog.",
        "This is a bad photo of the dog.",
        "This is a photo of the weird dog.",
        "This is a photo of a small dog.",
        "This is a photo of the dirty dog.",
        "This is a dark photo of a dog.",
        "This is a photo of a hard to see dog.",
        "This is a jpeg corrupted photo of the dog.",
        "This is a black and white photo of a dog.",
        "This is the plushie dog.",
        "This is an embroidered dog.",
        "This is a painting of the dog.",
    ):
        assert text in texts


def test_article_before_a_vowel():
    texts = ensemble("apple")
    assert "itap of an apple." in texts
    assert "This is a close-up photo of an apple." in texts
    assert "itap of a apple." not in texts
    # These families have a literal "a", whatever follows.
    assert "This is a toy apple." in texts and "This is a painting of a apple." in texts


def test_article_looks_at_the_raw_name():
    assert "itap of a apple." in ensemble("Apple")


def test_name_is_cleaned():
    assert "itap of my bow or ribbon tied jr." in ensemble("Bow/ribbon_tied Jr.")


def test_prefix_only_before_a_and_the():
    without = [text for text in ensemble("dog") if not text.startswith("This is ")]
    assert sorted({text.split()[0] for text in without}) == ["There", "itap"]
    assert len(without) == 5


def test_prompts_by_config_name():
    assert PROMPTS["a"]("cup") == ["a cup"]
    assert PROMPTS["name"]("cup") == ["cup"]
    assert PROMPTS["ensemble"]("cup") == ensemble("cup")


@settings(max_examples=30, deadline=None)
@given(st.text("abetxEX _/.-", max_size=12))
def test_any_name_gives_63_prefixed_texts(name):
    texts = ensemble(name)
    assert len(texts) == 63
    assert not any(text.startswith(("a", "the")) for text in texts)
