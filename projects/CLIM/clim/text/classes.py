"""Class names: their prompts, and their embeddings, computed by a text tower or loaded from a file.

Shapes: K classes, P prompts of a class, D dimensions of an embedding.
"""

import os
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from clim.errors import UserError
from clim.files import resolve
from clim.text.tower import TextTower

_CLASSES_AT_ONCE = 32

# Every family is expanded over its choices; "{article}" becomes a or an, "{name}" the class.
# Source: the 63 ViLD templates, as the CLIM release lists them.
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


def ensemble(name: str) -> list[str]:
    """The 63 ViLD prompts of a class, whose normalised embeddings are averaged (CLIM release).

    The name loses underscores, slashes ("a/b" -> "a or b"), capitals and a final dot. The article is "an" where the
    *raw* name starts with a lower-case vowel. A text that starts with "a" or "the" gets the prefix "This is ".
    """
    article = "an" if name.startswith(("a", "e", "i", "o", "u")) else "a"
    clean = name.replace("_", " ").replace("/", " or ").lower().removesuffix(".")
    texts = (template.format(article=article, name=clean) for template in TEMPLATES)
    return [f"This is {text}" if text.startswith(("a", "the")) else text for text in texts]


# Prompt name (config key MODEL.VOCABULARY.PROMPT) -> the texts whose embeddings stand for a class.
PROMPTS: dict[str, Callable[[str], list[str]]] = {
    "a": lambda name: ["a " + name],  # Detic's: the raw name, with its underscores and never with "an"
    "ensemble": ensemble,
    "name": lambda name: [name],
}


def class_embeddings(tower, names: Sequence[str], prompt: str = "ensemble", *, hidden: bool = False) -> Tensor:
    """(K, D) L2-normalised float32 embeddings of ``names``, on the tower's device.

    A class embedding is the normalised mean of the unit embeddings of its prompts (CLIM release).

    Args:
        tower: anything with ``encode(texts)``.
        prompt: a key of :data:`PROMPTS`.
        hidden: average features of the tower's last layer, BARON's "attn12" (baron §4), in place of embeddings.
    """
    if prompt not in PROMPTS:
        raise UserError(f"MODEL.VOCABULARY.PROMPT {prompt!r} is unknown: choose one of {', '.join(PROMPTS)}.")
    encode = tower.live.encode_hidden if hidden else tower.encode
    if not len(names):
        return encode([])
    starts = range(0, len(names), _CLASSES_AT_ONCE)
    means = []
    for start in tqdm(starts, desc="class embeddings", unit="batch", disable=len(names) < 200):
        texts = [PROMPTS[prompt](name) for name in names[start : start + _CLASSES_AT_ONCE]]
        embeddings = encode([text for of_class in texts for text in of_class])
        means.append(embeddings.unflatten(0, (len(texts), -1)).mean(dim=1))
    return F.normalize(torch.cat(means), dim=-1)


def word_piece_means(tower: TextTower, names: Sequence[str]) -> Tensor:
    """(K, D) float32 means of the word-embedding rows of each name's word pieces, not normalised (ovrcnn §2).

    UserError for a name without word pieces, or with a word that the tower does not know.
    """
    rows = []
    for name, tokens in zip(names, tower.tokenize(names) if len(names) else [], strict=True):
        pieces = tokens[1:-1]  # without start and end token
        if not pieces or tower.unknown_id in pieces:
            raise UserError(
                f"The class name {name!r} has words that the text tower does not know, or none: give it another name."
            )
        rows.append(tower.word_embeddings[pieces].mean(dim=0))
    return torch.stack(rows).float() if rows else tower.word_embeddings.new_zeros(0, tower.word_dim)


def load_embeddings(
    path: str | os.PathLike,
    *,
    key: str = "MODEL.VOCABULARY.EMBEDDINGS",
    unit: bool = True,
    made_by: str = "python tools/build_text_embeddings.py classes",
) -> Tensor:
    """(K, D) float32 rows of a .npy file (K, D), float16, 32 or 64, L2-normalised unless ``unit`` is False.

    Looks up ``path``, the value of the config key ``key``, under ``DETECTRON2_DATASETS`` too. ``made_by`` is the
    command that writes the file, without its ``--output``. UserError where the file is missing or not such an array,
    or has a row of zeros or non-finite numbers.
    """
    file = resolve(path)
    remedy = f"build it with `{made_by} --output {file}`"
    try:
        array = np.load(file, allow_pickle=False)
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
            raise ValueError(f"it holds {array.dtype} {array.shape}")
    except FileNotFoundError as error:
        raise UserError(f"No class embeddings at {file} ({key}): {remedy}.") from error
    except (OSError, ValueError, EOFError, AttributeError) as error:  # the last: an archive of arrays
        raise UserError(f"{file} is not a .npy file of floats (classes, dimensions) ({error}): {remedy}.") from error
    embeddings = torch.from_numpy(array.astype(np.float32))
    norms = embeddings.norm(dim=1)
    damaged = ~(norms.isfinite() & (norms > 0))
    if damaged.any():
        row = int(damaged.nonzero()[0])
        raise UserError(f"Row {row} of the class embeddings in {file} is zero or not finite: {remedy}.")
    return F.normalize(embeddings, dim=-1) if unit else embeddings


def require_width(width: int, cfg, *, what: str, key: str = "DIM") -> None:
    """UserError where ``what``, with ``width`` dimensions, differs from MODEL.TEXT.``key``."""
    expected = cfg.MODEL.TEXT[key]
    if width != expected:
        raise UserError(f"{what} has {width} dimensions, but MODEL.TEXT.{key} is {expected}: they must agree.")


# Features of class names (a classifier's ``text_features``): (encoder, names, prompt) -> (K, D).
CLASS_FEATURES = {
    "embedding": class_embeddings,
    "hidden": lambda encoder, names, prompt: class_embeddings(encoder, names, prompt, hidden=True),
    "words": lambda encoder, names, prompt: word_piece_means(encoder.live, names),
}
