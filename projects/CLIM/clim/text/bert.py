"""A BERT from a folder as a text tower, the tokens of captions, and BERT's masking of words.

Shapes: B texts, L tokens of the longest, start and end token included, D width of words and of the last layer.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clim.checkpoints.reading import check_archive, require_finite
from clim.errors import UserError, telling
from clim.text.tower import TextTower, WordFeatures


class TokenBatch(NamedTuple):
    """Token ids of B captions, padded to the longest."""

    ids: Tensor  # (B, L) int64
    attention: Tensor  # (B, L) bool, False for padding
    special: Tensor  # (B, L) bool: start and end tokens, padding, and words hidden by :func:`mask_words`

    def of(self, captions: Tensor) -> "TokenBatch":
        """The chosen ``captions`` (indices or a mask), padded to the longest of them."""
        longest = max(self.attention[captions].sum(1).tolist(), default=0)
        return TokenBatch(*(field[captions, :longest] for field in self))


def mask_words(tokens: TokenBatch, *, mask_id: int, probability: float, hidden: float) -> tuple[TokenBatch, Tensor]:
    """Choose words that a model predicts, and hide most of them (arXiv 1810.04805).

    Each token that is not special is chosen with ``probability``; a part ``hidden`` of these becomes ``mask_id`` and
    special (official OVR-CNN: .15 and .9; ovrcnn §1.2). Draws from torch's random state on the CPU, which a resumed
    run restores. Returns the tokens to read, and (B, L) bool, the chosen ones.
    """
    draws = torch.rand(2, *tokens.ids.shape).to(tokens.ids.device)
    chosen = (draws[0] < probability) & ~tokens.special
    masked = chosen & (draws[1] < hidden)
    return TokenBatch(tokens.ids.masked_fill(masked, mask_id), tokens.attention, tokens.special | masked), chosen


class BertTower(TextTower):
    """A mean-pooled BERT, as sentence-transformers uses MiniLM. Cuts texts to the model's positions and keeps [SEP]."""

    def __init__(self, *, folder: Path):
        from transformers import AutoModel, AutoTokenizer  # takes seconds

        options = {"local_files_only": True, "trust_remote_code": False}  # None would ask the user whether to run code
        with telling(f"{folder} (MODEL.TEXT.NAME) holds no readable BERT", remedy="copy or download it again, whole"):
            for file in folder.glob("*.bin"):  # zips, whose checksums transformers does not compare
                check_archive(file)
            tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
            options |= {"dtype": torch.float32, "output_loading_info": True}
            model, found = AutoModel.from_pretrained(str(folder), **options)
            other = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
            if other := sorted([*other, *(name for name in found["unexpected_keys"] if ".layer." in name)]):
                raise ValueError(f"either its config.json or its weights lack {other[0]}")
            config = model.config
            kind = {"type": config.model_type, "activation": config.hidden_act, "heads": config.num_attention_heads}
        require_finite(model.state_dict(), folder)
        if not 0.9 * config.vocab_size < len(tokenizer) <= config.vocab_size:  # a model may have a few rows more
            raise UserError(
                f"{folder} (MODEL.TEXT.NAME) has a tokenizer of {len(tokenizer)} word pieces, but its BERT knows "
                f"{config.vocab_size}: replace its vocab.txt or tokenizer.json by that of the model."
            )
        vocabulary = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
        description = kind | {"lower": tokenizer.init_kwargs.get("do_lower_case"), "vocabulary": vocabulary}
        super().__init__(architecture=json.dumps(description, sort_keys=True))
        self.model = model
        self.dim = self.hidden_dim = config.hidden_size
        self.context = config.max_position_embeddings
        self.unknown_id, self.mask_id = tokenizer.unk_token_id, tokenizer.mask_token_id
        self.ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        self._tokenizer = tokenizer
        self.freeze()

    def tokenize(self, texts) -> list[list[int]]:
        return self._tokenizer(list(texts), truncation=True, max_length=self.context)["input_ids"]

    @property
    def word_embeddings(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def tokens(self, texts: Sequence[str]) -> TokenBatch:
        """Tokens of B texts on the tower's device."""
        rows = self.tokenize(texts)
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence([torch.tensor(row) for row in rows], True, padding_value=self._tokenizer.pad_token_id)
        place = torch.arange(ids.shape[1])
        special = (place == 0) | (place >= lengths[:, None] - 1)
        return TokenBatch(*(t.to(self.device) for t in (ids, place < lengths[:, None], special)))

    @torch.no_grad()
    def contextual(self, ids: Tensor, attention: Tensor, *, dropout: bool = False) -> Tensor:
        """(B, L, D) features of the last layer of the tokens ``ids`` (B, L) where ``attention`` (B, L) is True;
        with the model's own ``dropout`` in official OVR-CNN (ovrcnn §1.2).
        """
        self.model.train(dropout)
        try:
            return self.model(input_ids=ids, attention_mask=attention.long()).last_hidden_state
        finally:
            self.model.eval()

    def features_of_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """Both features are the mean over a text's tokens, start and end token included."""
        real = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
        tokens = self.model(inputs_embeds=words, attention_mask=real.long()).last_hidden_state  # (B, L, H)
        weights = real[..., None].to(tokens.dtype)
        mean = (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        return WordFeatures(mean, mean)
