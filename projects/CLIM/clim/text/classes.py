"""Prompts of class names, and their embeddings, from a text tower or from a file.

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

from clim.checkpoints.reading import read_content
from clim.errors import UserError, telling
from clim.files import resolve
from clim.text.tower import TextTower

_CLASSES_AT_ONCE = 32

# The 63 ViLD templates, as the CLIM release lists them: each family with all its choices. "{article}" is a or an.
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
    ("a {} photo of {} {{name}}.", ("low resolution", "cropped", "close-up"), ("{article}", "the")),
    ("a {} photo of {} {{name}}.", ("jpeg corrupted", "blurry", "pixelated"), ("{article}", "the")),
    ("a black and white photo of {} {{name}}.", ("the", "{article}")),
    ("{} {} {{name}}.", ("a", "the"), ("plastic", "toy", "plushie", "cartoon")),
    ("{} embroidered {{name}}.", ("an", "the")),
    ("a painting of {} {{name}}.", ("the", "a")),
)

TEMPLATES = tuple(pattern.format(*choice) for pattern, *slots in _FAMILIES for choice in product(*slots))


def ensemble(name: str) -> list[str]:
    """The 63 ViLD prompts of a class, as the CLIM release writes them.

    Underscores become spaces, "a/b" becomes "a or b", capitals and a final dot go. The article is "an" if the *raw*
    name starts with a lower-case vowel. A text that starts with "a" or "the" gets the prefix "This is ".
    """
    article = "an" if name.startswith(("a", "e", "i", "o", "u")) else "a"
    clean = name.replace("_", " ").replace("/", " or ").lower().removesuffix(".")
    texts = (template.format(article=article, name=clean) for template in TEMPLATES)
    return [f"This is {text}" if text.startswith(("a", "the")) else text for text in texts]


def imagenet(name: str) -> list[str]:
    """The 81 prompts of a class or noun in RegionCLIP and VLDet: its name with a dot, and CLIP's 80 for ImageNet.

    Underscores and "+" become spaces; commas and brackets go, their content stays. "a" never becomes "an" (vldet §2).
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES  # takes seconds

    clean = name.translate(str.maketrans("_+", "  ", ",()"))
    return [f"{clean}.", *(template(clean) for template in OPENAI_IMAGENET_TEMPLATES)]


# MODEL.VOCABULARY.PROMPT -> the texts for a class.
PROMPTS: dict[str, Callable[[str], list[str]]] = {
    "a": lambda name: ["a " + name],  # Detic's: the raw name with its underscores, never "an"
    "ensemble": ensemble,
    "imagenet": imagenet,
    "name": lambda name: [name],
}


def class_embeddings(tower, names: Sequence[str], prompt: str = "ensemble", *, hidden: bool = False) -> Tensor:
    """(K, D) float32 unit embeddings of ``names``: normalised means over the embeddings of the prompts (CLIM release).

    ``prompt`` is a key of :data:`PROMPTS`. ``hidden``: features of the tower's last layer, BARON's "attn12" (baron §4).
    """
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
    """(K, W) float32 un-normalised means of the word embeddings of each name's word pieces (ovrcnn §2)."""
    rows = []
    for name, tokens in zip(names, tower.tokenize(names) if len(names) else [], strict=True):
        pieces = tokens[1:-1]  # without start and end token
        if not pieces or tower.unknown_id in pieces:
            raise UserError(f"The class name {name!r} has words that the text tower does not know, or none: change it.")
        rows.append(tower.word_embeddings[pieces].mean(dim=0))
    return torch.stack(rows).float() if rows else tower.word_embeddings.new_zeros(0, tower.word_dim)


def load_embeddings(
    path: str | os.PathLike, *, key: str = "MODEL.VOCABULARY.EMBEDDINGS", unit: bool = True,
    made_by: str = "python tools/build_text_embeddings.py classes",
) -> Tensor:  # fmt: skip
    """(K, D) float32 rows of a .npy or .pth file of floats (K, D) or (K, 1, D), normalised unless ``unit`` is False.

    ``path``, the value of ``key``, may be relative to the data root; the command ``made_by`` writes such files.
    UserError if there is no such array, or if a row is zero or not finite.
    """
    file = resolve(path)
    remedy = f"set {key} to another file, or build this one with `{made_by} --output {file}`"
    with telling(f"{file} holds no floats (classes, dimensions)", remedy=remedy):
        array = np.asarray(read_content(file, remedy=remedy))
        array = array[:, 0] if array.ndim == 3 and array.shape[1] == 1 else array  # RegionCLIP's script
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape or 0 in array.strides:
            raise ValueError(f"it holds {array.dtype} {array.shape}")
    embeddings = torch.from_numpy(array.astype(np.float32))
    norms = embeddings.norm(dim=1)
    damaged = (~(norms.isfinite() & (norms > 0))).nonzero()
    if len(damaged):
        raise UserError(f"Row {int(damaged[0])} of the class embeddings in {file} is zero or not finite: {remedy}.")
    return F.normalize(embeddings, dim=-1) if unit else embeddings


def load_nouns(path: str, cfg, *, key: str) -> Tensor:
    """(V, D) unit rows of :func:`load_embeddings`, whose numbers are tags of pairs. UserError if D is not TEXT.DIM."""
    command = f"python tools/build_text_embeddings.py classes --dataset NOUNS.json --tower {cfg.MODEL.TEXT.NAME}"
    nouns = load_embeddings(path, key=key, made_by=command)
    require_width(nouns.shape[1], cfg, what=f"{path} ({key})")
    return nouns


def require_rows(nouns: Tensor, noun: int, *, key: str, what: str) -> None:
    """UserError if ``what`` has a ``noun`` that is no row of the embeddings ``nouns`` of ``key``."""
    if noun >= len(nouns):
        raise UserError(f"{what} has noun {noun}, but {key} has {len(nouns)} rows: name the embeddings of its nouns.")


def require_width(width: int, cfg, *, what: str, key: str = "DIM") -> None:
    """UserError if the ``width`` of ``what`` is not MODEL.TEXT.``key``."""
    expected = cfg.MODEL.TEXT[key]
    if width != expected:
        raise UserError(f"{what} has {width} dimensions, but MODEL.TEXT.{key} is {expected}: they must agree.")


# A classifier's ``text_features`` -> the function (encoder, names, prompt) -> (K, D).
CLASS_FEATURES = {
    "embedding": class_embeddings,
    "hidden": lambda encoder, names, prompt: class_embeddings(encoder, names, prompt, hidden=True),
    "words": lambda encoder, names, prompt: word_piece_means(encoder.live, names),
}
