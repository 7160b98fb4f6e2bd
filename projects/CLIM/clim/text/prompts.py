"""Prompt texts for class names: Detic's one, and the 63 of ViLD that the CLIM release averages."""

from collections.abc import Callable
from itertools import product

# Every family is expanded over its choices; "{article}" becomes a or an, "{name}" the class.
# Source: the 63 ViLD templates, as listed by the CLIM release.
_FAMILIES = (
    ("There is {} {{name}} in the scene.", ("{article}", "the")),
    ("a photo of {} {{name}} in the scene.", ("{article}", "the", "one")),
    ("itap of {} {{name}}.", ("{article}", "my", "the")),
    ("a photo of {} {{name}}.", ("{article}", "my", "the", "one", "many")),
    ("a {} photo of {} {{name}}.", ("good", "bad"), ("{article}", "the")),
    ("a photo of {} {} {{name}}.", ("a", "the"), ("nice", "cool", "weird")),
    ("a photo of {} {} {{name}}.", ("a", "the"), ("small", "large")),
    ("a photo of {} {} {{name}}.", ("a", "the"), ("clean", "dirty")),
    ("a {} photo of {} {{name}}.", ("bright", "dark"), ("{article}", "the")),
    ("a photo of {} hard to see {{name}}.", ("a", "the")),
    (
        "a {} photo of {} {{name}}.",
        ("low resolution", "cropped", "close-up", "jpeg corrupted", "blurry", "pixelated"),
        ("{article}", "the"),
    ),
    ("a black and white photo of {} {{name}}.", ("the", "{article}")),
    ("{} {} {{name}}.", ("a", "the"), ("plastic", "toy", "plushie", "cartoon")),
    ("{} embroidered {{name}}.", ("an", "the")),
    ("a painting of {} {{name}}.", ("the", "a")),
)

TEMPLATES: tuple[str, ...] = tuple(
    pattern.format(*choice) for pattern, *slots in _FAMILIES for choice in product(*slots)
)


def a_name(name: str) -> str:
    """Detic's prompt: ``"a "`` and the raw class name (underscores kept, never "an")."""
    return "a " + name


def ensemble(name: str) -> list[str]:
    """The 63 ViLD prompts of a class, whose normalised embeddings are averaged (CLIM release).

    The name loses underscores, slashes ("a/b" -> "a or b"), capitals and its final dot; the article
    is "an" before a lower-case vowel of the *raw* name. A text that starts with "a" or "the" gets
    "This is " in front.
    """
    article = "an" if name.startswith(("a", "e", "i", "o", "u")) else "a"
    clean = name.replace("_", " ").replace("/", " or ").lower().removesuffix(".")
    texts = (template.format(article=article, name=clean) for template in TEMPLATES)
    return [f"This is {text}" if text.startswith(("a", "the")) else text for text in texts]


# Prompt name (config key MODEL.VOCABULARY.PROMPT) -> the texts whose embeddings stand for a class.
PROMPTS: dict[str, Callable[[str], list[str]]] = {
    "a": lambda name: [a_name(name)],
    "ensemble": ensemble,
    "name": lambda name: [name],
}
