"""Predict each token from those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protocols.tasks.base import Batch, evaluating
from protocols.tasks.language.models import CAUSAL_MODELS
from protocols.tasks.language.task import LanguageTask
from protocols.tasks.language.tokenization import CAUSAL_TOKENS, tokens_of


class CausalLanguageTask(LanguageTask):
    """A sample is `sequence_length` tokens, of which all but the first are predicted."""

    family = CAUSAL_MODELS
    special = CAUSAL_TOKENS
    pipeline_tag = "text-generation"

    @property
    def separator(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def text_length(self) -> int:
        return self.settings.sequence_length

    def loss_text(self, loss: float) -> str:
        return super().loss_text(loss) + (f" (perplexity {math.exp(loss):,.1f})" if loss < 100 else "")

    def collate(self, sequences: Sequence[Sequence[int]], seeds: Sequence[int]) -> Batch:
        return {"input_ids": torch.tensor(sequences)}  # (samples, tokens)

    def targets(self, batch: Batch) -> Tensor:
        return batch["input_ids"][:, 1:]

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
        return logits

    def generate(self, model: nn.Module, prompt: str, max_new_tokens: int, *, top_k: int = 0, seed: int = 0) -> str:
        device = next(model.parameters()).device
        draw = torch.Generator().manual_seed(seed)
        tokens = tokens_of(self.tokenizer, prompt) or [self.separator]
        start = len(tokens)
        with evaluating(model):
            for _ in range(max_new_tokens):
                window = torch.tensor([tokens[-self.settings.sequence_length :]], device=device)
                token = self._pick(model(input_ids=window, use_cache=False).logits[0, -1], top_k, draw)
                if token == self.separator:
                    break
                tokens.append(token)
        return prompt + str(self.tokenizer.decode(tokens[start:]))
