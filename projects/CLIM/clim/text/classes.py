"""Embeddings of class names: computed by a text tower, or loaded from a file.

Shapes: K classes, P prompts of a class, D dimensions of an embedding.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from clim.errors import UserError
from clim.files import resolve
from clim.text.base import TextTower
from clim.text.prompts import PROMPTS

_CLASSES_AT_ONCE = 32


class HiddenFeatures:
    """A tower whose ``encode`` gives the last layer's features, BARON's "attn12" (baron §4)."""

    def __init__(self, encoder):
        """``encoder``: a tower, or a lazy or cached one; loaded now if it was not."""
        self._tower = encoder.live
        self.dim = self._tower.hidden_dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, H) float32 L2-normalised on the tower's device."""
        return self._tower.encode_hidden(texts)


def class_embeddings(tower, names: Sequence[str], prompt: str = "ensemble") -> Tensor:
    """(K, D) L2-normalised float32 embeddings of ``names``, on the tower's device.

    Each prompt's embedding has unit length, a class is the normalised mean of its prompts' (CLIM
    release). Official Detic's files hold the un-normalised embedding of ``"a " + name``; its
    classifier normalises on loading, so the two are the same classifier.

    Args:
        tower: anything with ``dim`` and ``encode(texts)``.
        prompt: "a", "ensemble" or "name", see :mod:`clim.text.prompts`.
    """
    if prompt not in PROMPTS:
        raise UserError(f"MODEL.VOCABULARY.PROMPT {prompt!r} is unknown: choose one of {', '.join(PROMPTS)}.")
    if not len(names):
        return tower.encode([])
    chunks = []
    with tqdm(total=len(names), desc="class embeddings", unit="class", disable=len(names) < 200) as bar:
        for start in range(0, len(names), _CLASSES_AT_ONCE):
            texts = [PROMPTS[prompt](name) for name in names[start : start + _CLASSES_AT_ONCE]]
            embeddings = tower.encode([text for of_class in texts for text in of_class])
            chunks.append(embeddings.view(len(texts), -1, tower.dim).mean(dim=1))
            bar.update(len(texts))
    return F.normalize(torch.cat(chunks), dim=-1)


def word_piece_means(tower: TextTower, names: Sequence[str]) -> Tensor:
    """(K, D) float32 means of the word-embedding rows of each name's word pieces, not normalised (ovrcnn §2).

    No position, no context: what the tower knows of a word before it reads. Raises UserError for a name without
    any piece, or with a word that the tower does not know.
    """
    rows = []
    for name, tokens in zip(names, tower.tokenize(names) if len(names) else [], strict=True):
        pieces = tokens[1:-1]  # between the tower's start and end
        if not pieces or tower.unknown_id in pieces:
            raise UserError(
                f"The class name {name!r} is not of words that the text tower knows: give it another name."
            )
        rows.append(tower.word_embeddings[pieces].mean(dim=0))
    return torch.stack(rows).float() if rows else tower.word_embeddings.new_zeros(0, tower.word_dim)


def load_embeddings(
    path: str | os.PathLike,
    *,
    num_classes: int | None = None,
    key: str = "MODEL.VOCABULARY.EMBEDDINGS",
    unit: bool = True,
    made_by: str = "python tools/build_text_embeddings.py classes",
) -> Tensor:
    """(K, D) float32 rows of a .npy file (K, D), float16, 32 or 64, L2-normalised unless ``unit`` is False.

    ``path``, the config's ``key``, is looked up under ``DETECTRON2_DATASETS`` too; ``made_by``, without its
    ``--output``, is the command that writes it. Raises UserError when the file is missing, is not such an array,
    holds a row without direction, or has another K than ``num_classes``.
    """
    file = resolve(path)
    remedy = f"{made_by} --output {file}"
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"No class embeddings at {file} ({key}): build them with `{remedy}`.") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is not a .npy file of class embeddings ({error}): `{remedy}`.") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive of arrays"
        raise UserError(
            f"{file} holds {found}, but class embeddings are floats (classes, dimensions): `{remedy}`."
        )
    if num_classes is not None and len(array) != num_classes:
        raise UserError(
            f"{file} ({key}) holds {len(array)} classes, but the model has "
            f"{num_classes}: name the file of this vocabulary, or change MODEL.ROI_HEADS.NUM_CLASSES."
        )
    embeddings = torch.from_numpy(array.astype(np.float32))
    norms = embeddings.norm(dim=1)
    if not (norms.isfinite() & (norms > 0)).all():
        row = int((~(norms.isfinite() & (norms > 0))).nonzero()[0])
        raise UserError(f"Row {row} of the class embeddings in {file} is zero or not finite: `{remedy}`.")
    return F.normalize(embeddings, dim=-1) if unit else embeddings


# What a class name becomes: feature -> (encoder, names, prompt) -> (K, D).
CLASS_FEATURES = {
    "embedding": class_embeddings,
    "hidden": lambda encoder, names, prompt: class_embeddings(HiddenFeatures(encoder), names, prompt),
    "words": lambda encoder, names, prompt: word_piece_means(encoder.live, names),
}
