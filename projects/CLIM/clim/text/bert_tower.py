"""BERT-like sentence tower: mean of the last layer's token features, from a folder on this machine."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from clim.errors import UserError
from clim.text.base import TextTower


class BertTower(TextTower):
    """Mean-pooled BERT, as sentence-transformers uses MiniLM. Nothing is looked up on a hub.

    Over-long texts are cut at the last position that the model knows (512 for BERT), [SEP] kept.
    """

    def __init__(self, *, folder: Path):
        """``folder`` holds config.json, the weights and the tokenizer. UserError if it does not."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{folder} (MODEL.TEXT.NAME) holds no readable BERT: {reason}") from error
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
        self.dim = model.config.hidden_size
        self._tokenizer = tokenizer
        self.freeze()

    def tokenize(self, texts) -> list[list[int]]:
        longest = self.model.config.max_position_embeddings
        return self._tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]

    @property
    def word_embeddings(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def features(self, tokens: list[list[int]]) -> Tensor:
        batch = self._tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.device)
        hidden = self.model(**batch).last_hidden_state  # (B, L, D)
        real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * real).sum(dim=1) / real.sum(dim=1)
