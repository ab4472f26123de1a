"""Predict each token from those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from protocols.run_spec import RunSpec
from protocols.tasks.base import Batch
from protocols.tasks.language.corpus import Document
from protocols.tasks.language.packing import as_tensor
from protocols.tasks.language.task import LanguageTask
from protocols.tasks.language.tokenization import tokens_of


class CausalLanguageTask(LanguageTask):
    """A sample is `sequence_length` tokens, of which all but the first are predicted."""

    def __init__(
        self,
        spec: RunSpec,
        tokenizer: PreTrainedTokenizerFast,
        read_documents: Callable[[], Sequence[Document]],
        held_out: Sequence[Document],
    ) -> None:
        super().__init__(spec, tokenizer, read_documents, held_out, tokenizer.eos_token_id, spec.training.sequence_length)

    def collate(self, sequences: Sequence[Sequence[int]], seeds: Sequence[int]) -> Batch:
        return {"input_ids": as_tensor(sequences)}

    def targets(self, batch: Batch) -> Tensor:
        return batch["input_ids"][:, 1:]

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
        return logits

    def generate(self, model: nn.Module, prompt: str, max_new_tokens: int, *, top_k: int = 0, seed: int = 0) -> str:
        device = next(model.parameters()).device
        draw = torch.Generator().manual_seed(seed)
        tokens = tokens_of(self.tokenizer, prompt) or [self._separator]
        start = len(tokens)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for _ in range(max_new_tokens):
                    window = torch.tensor([tokens[-self.spec.training.sequence_length :]], device=device)
                    token = self._pick(model(input_ids=window, use_cache=False).logits[0, -1], top_k, draw)
                    if token == self._separator:
                        break
                    tokens.append(token)
        finally:
            model.train(was_training)
        return prompt + str(self.tokenizer.decode(tokens[start:]))
