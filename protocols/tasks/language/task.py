"""What causal and masked language modelling share: the corpus, the held-out text and how it is scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from protocols.errors import CorpusError
from protocols.run_spec import RunSpec
from protocols.tasks.base import Batch, Batches, Task, to_device
from protocols.tasks.language.corpus import Document, without_near_duplicates_of
from protocols.tasks.language.models import build_model, model_config
from protocols.tasks.language.packing import Prefetched, held_out_sequences, seed_of, spread, training_sequences
from protocols.tasks.language.tokenization import tokens_of

_EVALUATION_BATCH = 16
_UNIGRAM_CHARACTERS = 4 << 20


class LanguageTask(Task):
    """Reads this machine's training text when it is first needed: who only evaluates needs none."""

    def __init__(
        self,
        spec: RunSpec,
        tokenizer: PreTrainedTokenizerFast,
        read_documents: Callable[[], Sequence[Document]],
        held_out: Sequence[Document],
        separator: int,
        text_length: int,
    ) -> None:
        """`separator` is the token between documents; `text_length` is how many of a sample's tokens hold text."""
        self.spec = spec
        self.tokenizer = tokenizer
        self._read_documents = read_documents
        self.held_out = held_out
        self._separator = separator
        self._text_length = text_length
        self._config = model_config(spec, tokenizer)

    @cached_property
    def documents(self) -> Sequence[Document]:
        """The training text, without what nearly duplicates held-out text. Raises CorpusError when nothing remains."""
        documents = without_near_duplicates_of(self._read_documents(), self.held_out)
        if not documents:
            raise CorpusError("all of this machine's text is held-out text", remedy="Train on other text: data.paths.")
        return documents

    def build_model(self) -> nn.Module:
        return build_model(self.spec, self._config)

    def batches(self, *, seed: int, peer: str, micro_batch: int) -> Batches:
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}")
        _ = self.documents  # here, so that a missing corpus is the caller's error and not the thread's
        return Prefetched(lambda: self._make_batches(seed_of("order", seed, peer), micro_batch))

    def evaluate(self, model: nn.Module, max_samples: int | None = None) -> float:
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        total, count = 0.0, 0
        try:
            with torch.no_grad():
                for batch in self._held_out_batches(max_samples):
                    losses, predicted = self.token_losses(model, to_device(batch, device))
                    total += float(losses.double().sum())
                    count += int(predicted.sum())
        finally:
            model.train(was_training)
        return total / count

    def unigram_loss(self, max_samples: int | None = None) -> float:
        counts = torch.ones(self._config.vocab_size, dtype=torch.float64)  # add-one smoothing
        # Part of the text, spread over all of it, is enough: it is off by about vocabulary / (2 x tokens), some 0.001 nats.
        step = max(1, -(-sum(len(document.text) for document in self.documents) // _UNIGRAM_CHARACTERS))
        for document in self.documents[::step]:
            ids = torch.tensor([*tokens_of(self.tokenizer, document.text), self._separator])
            counts += torch.bincount(ids, minlength=len(counts))
        log_probabilities = (counts / counts.sum()).log()
        total, count = 0.0, 0
        for batch in self._held_out_batches(max_samples):
            targets = self.targets(batch)
            targets = targets[targets >= 0]
            total -= float(log_probabilities[targets].sum())
            count += len(targets)
        return total / count

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses, predicted = self.token_losses(model, batch)
        return (losses.sum(dim=1) / predicted.sum(dim=1)).sum()

    def token_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(samples, positions) each: the loss in nats, 0 where nothing is predicted, and whether something is."""
        targets = self.targets(batch)  # (samples, positions), -100 where nothing is predicted
        logits = self.logits(model, batch)  # (samples, positions, vocabulary)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
        return losses.view_as(targets), targets >= 0

    @abstractmethod
    def collate(self, sequences: Sequence[Sequence[int]], seeds: Sequence[int]) -> Batch:
        """Sequences of `text_length` tokens to a batch; each sample's randomness comes from its own seed."""

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """(samples, positions): the token to predict at each position of `logits`, -100 for none."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(samples, positions, vocabulary)"""

    def _make_batches(self, seed: int, micro_batch: int) -> Iterator[Batch]:
        sequences = training_sequences(self.documents, self.tokenizer, self._text_length, self._separator, seed)
        counter = 0
        while True:
            chosen = list(islice(sequences, micro_batch))
            yield self.collate(chosen, [seed_of(seed, i) for i in range(counter, counter + micro_batch)])
            counter += micro_batch

    @cached_property
    def _held_out_sequences(self) -> list[list[int]]:
        sequences = held_out_sequences(self.held_out, self.tokenizer, self._text_length, self._separator)
        if not sequences:
            raise CorpusError("the held-out text does not fill one sequence", remedy="Raise data.held_out_bytes or add text.")
        return sequences

    def _held_out_batches(self, max_samples: int | None) -> Iterator[Batch]:
        chosen = spread(len(self._held_out_sequences), max_samples)
        for start in range(0, len(chosen), _EVALUATION_BATCH):
            part = chosen[start : start + _EVALUATION_BATCH]
            yield self.collate([self._held_out_sequences[i] for i in part], [seed_of("held-out", i) for i in part])

    def _pick(self, logits: Tensor, top_k: int, draw: torch.Generator) -> int:
        """One token from (vocabulary,) logits; those beyond the tokenizer's are padding and never drawn."""
        logits = logits[: len(self.tokenizer)].float().cpu()
        if top_k <= 0:
            return int(logits.argmax())
        values, tokens = logits.topk(min(top_k, len(logits)))
        return int(tokens[torch.multinomial(values.softmax(0), 1, generator=draw)])
