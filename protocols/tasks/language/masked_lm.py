"""Predict masked tokens from both sides, as in BERT (Devlin et al., 2019): 80 % of those are hidden, 10 % replaced, 10 % kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from protocols.run_spec import RunSpec
from protocols.tasks.base import Batch, evaluating
from protocols.tasks.language.models import MASKED_MODELS
from protocols.tasks.language.settings import MaskedSettings
from protocols.tasks.language.task import LanguageTask
from protocols.tasks.language.tokenization import MASKED_TOKENS, tokens_of


class MaskedLanguageTask(LanguageTask):
    """A sample is [CLS], `sequence_length` - 2 tokens of text, [SEP]; at least one token of it is predicted."""

    settings_type: ClassVar[type[MaskedSettings]] = MaskedSettings
    family = MASKED_MODELS
    special = MASKED_TOKENS
    settings: MaskedSettings
    pipeline_tag = "fill-mask"

    def __init__(self, resolved: RunSpec, assets: Path) -> None:
        super().__init__(resolved, assets)
        self._special = torch.zeros(self._config.vocab_size, dtype=torch.bool)  # (vocabulary,)
        self._special[self.tokenizer.all_special_ids] = True

    @property
    def separator(self) -> int:
        return int(self.tokenizer.sep_token_id)

    @property
    def text_length(self) -> int:
        return self.settings.sequence_length - 2

    def collate(self, sequences: Sequence[Sequence[int]], seeds: Sequence[int]) -> Batch:
        framed = [[self.tokenizer.cls_token_id, *sequence, self.tokenizer.sep_token_id] for sequence in sequences]
        input_ids = torch.tensor(framed)  # (samples, tokens)
        labels = torch.full_like(input_ids, -100)
        for row, seed in enumerate(seeds):
            self._mask(input_ids[row], labels[row], torch.Generator().manual_seed(seed))
        return {"input_ids": input_ids, "labels": labels}

    def targets(self, batch: Batch) -> Tensor:
        return batch["labels"]

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(input_ids=batch["input_ids"]).logits
        return logits

    def generate(self, model: nn.Module, prompt: str, max_new_tokens: int, *, top_k: int = 0, seed: int = 0) -> str:
        """Fills each mask token of the prompt, left to right; a prompt without one gets one at its end."""
        device = next(model.parameters()).device
        draw = torch.Generator().manual_seed(seed)
        mask = self.tokenizer.mask_token_id
        tokens = tokens_of(self.tokenizer, prompt)[: self.text_length]
        if mask not in tokens:
            tokens = [*tokens[: self.text_length - 1], mask]
        tokens = [self.tokenizer.cls_token_id, *tokens, self.tokenizer.sep_token_id]
        with evaluating(model):
            for _ in range(max_new_tokens):
                if mask not in tokens:
                    break
                at = tokens.index(mask)
                logits = model(input_ids=torch.tensor([tokens], device=device)).logits[0, at].float().cpu()
                logits[: len(self._special)][self._special[: len(logits)]] = -torch.inf
                tokens[at] = self._pick(logits, top_k, draw)
        return str(self.tokenizer.decode(tokens[1:-1]))

    def _mask(self, tokens: Tensor, labels: Tensor, draw: torch.Generator) -> None:
        """Choose tokens of one sample, (positions,), and hide them in place; `labels` receives what they were."""
        candidates = (~self._special[tokens]).nonzero().flatten()
        if len(candidates) == 0:  # nothing but separators: still a sample, so it predicts one of them
            candidates = torch.tensor([0])
        chosen = candidates[torch.rand(len(candidates), generator=draw) < self.settings.mask_probability]
        if len(chosen) == 0:
            chosen = candidates[torch.randint(len(candidates), (1,), generator=draw)]
        labels[chosen] = tokens[chosen]
        fate = torch.rand(len(chosen), generator=draw)
        tokens[chosen[fate < 0.8]] = self.tokenizer.mask_token_id
        replaced = chosen[(fate >= 0.8) & (fate < 0.9)]
        tokens[replaced] = torch.randint(len(self.tokenizer), (len(replaced),), generator=draw)
