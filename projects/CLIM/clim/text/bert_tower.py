"""BERT-like tower, from a folder on this machine: mean of the last layer's token features, or token by token.

Shapes: B texts, L tokens of the longest, V tokens known, D width of words and of the last layer.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from clim.errors import UserError
from clim.text.base import TextTower, WordFeatures
from clim.text.tokens import TokenBatch


class BertTower(TextTower):
    """Mean-pooled BERT, as sentence-transformers uses MiniLM. Nothing is looked up on a hub.

    Over-long texts are cut at the last position that the model knows (512 for BERT), [SEP] kept.
    """

    def __init__(self, *, folder: Path):
        """``folder`` holds config.json, the weights and the tokenizer. UserError if it does not."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{folder} (MODEL.TEXT.NAME) holds no readable BERT: {reason}") from error
        _check_vocabulary(folder, tokens=len(tokenizer), known=model.config.vocab_size)
        self_description = {
            "type": model.config.model_type,
            "activation": model.config.hidden_act,
            "heads": model.config.num_attention_heads,
            "lower": tokenizer.init_kwargs.get("do_lower_case"),
            "vocabulary": hashlib.sha256(
                json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()
            ).hexdigest(),
        }
        super().__init__(architecture=json.dumps(self_description, sort_keys=True))
        self.model = model
        self.dim = self.hidden_dim = model.config.hidden_size
        self.context = model.config.max_position_embeddings
        self.unknown_id = tokenizer.unk_token_id
        self.ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        self._tokenizer = tokenizer
        self.freeze()

    def tokenize(self, texts) -> list[list[int]]:
        """Word-piece ids with [CLS] and [SEP], cut to the context."""
        return self._tokenizer(list(texts), truncation=True, max_length=self.context)["input_ids"]

    @property
    def word_embeddings(self) -> Tensor:
        """(V, W), a row for each word piece."""
        return self.model.get_input_embeddings().weight

    @property
    def mask_id(self) -> int:
        """Id of the token that hides a word."""
        return self._tokenizer.mask_token_id

    def tokens(self, texts: Sequence[str]) -> TokenBatch:
        """Tokens of B texts on the tower's device, those that :meth:`tokenize` puts around a text marked special."""
        rows = self.tokenize(texts)
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence(
            [torch.tensor(row) for row in rows], True, padding_value=self._tokenizer.pad_token_id
        )
        place = torch.arange(ids.shape[1])
        special = (place == 0) | (place >= lengths[:, None] - 1)
        return TokenBatch(*(t.to(self.device) for t in (ids, place < lengths[:, None], special)))

    @torch.no_grad()
    def contextual(self, ids: Tensor, attention: Tensor, *, dropout: bool = False) -> Tensor:
        """(B, L, D) last layer's token features of ``ids`` (B, L) where ``attention`` (B, L) is True.

        ``dropout``: with the model's own dropout, as official OVR-CNN reads captions (ovrcnn §1.2).
        """
        self.model.train(dropout)
        try:
            return self.model(input_ids=ids, attention_mask=attention.long()).last_hidden_state
        finally:
            self.model.eval()

    def features_of_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """hidden and embedding are one: the mean over a text's tokens, start and end included."""
        real = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
        tokens = self.model(inputs_embeds=words, attention_mask=real.long()).last_hidden_state  # (B, L, H)
        weights = real.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        return WordFeatures(mean, mean)


def _check_vocabulary(folder: Path, *, tokens: int, known: int) -> None:
    """UserError for another tokenizer than the model's, which reads words as unknown; a model may pad its table."""
    if not 0.9 * known < tokens <= known:
        raise UserError(
            f"{folder} (MODEL.TEXT.NAME) has a tokenizer of {tokens} word pieces, but its BERT knows {known}: copy "
            "that model's vocab.txt or tokenizer.json there."
        )
