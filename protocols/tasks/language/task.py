"""What causal and masked language modelling share: the corpus, the held-out text and how it is scored."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.utils import logging

from protocols.errors import CorpusError, SpecError
from protocols.run_spec import RunSpec
from protocols.tasks.base import Batch, Batches, ModelCard, Prepared, Task, evaluating, to_device
from protocols.tasks.batches import Prefetched, seed_of, spread
from protocols.tasks.language.corpus import (
    Document,
    load_documents,
    require_no_local_paths,
    source_of,
    thinned,
    without_near_duplicates_of,
)
from protocols.tasks.language.models import Family, build_model, model_config, pretrained_model
from protocols.tasks.language.packing import held_out_sequences, training_sequences
from protocols.tasks.language.prepare import HELD_OUT, TOKENIZER, prepare_text, read_held_out
from protocols.tasks.language.settings import DataSpec, LanguageSettings
from protocols.tasks.language.tokenization import SpecialTokens, load_tokenizer, require_special_tokens, tokens_of

# The screen is dugnad's: bars would tear it, and the library's warnings speak of calls that are not a volunteer's to change.
logging.disable_progress_bar()
logging.set_verbosity_error()

_EVALUATION_BATCH = 16
_UNIGRAM_CHARACTERS = 4 << 20


class LanguageTask(Task):
    """Reads this machine's training text when it is first needed: who only evaluates needs none."""

    settings_type: ClassVar[type[LanguageSettings]] = LanguageSettings
    loss_unit = "nats per token"

    family: ClassVar[Family]
    special: ClassVar[SpecialTokens]
    pipeline_tag: ClassVar[str]

    @classmethod
    def prepare(cls, author: RunSpec, progress: Callable[[str], None]) -> Prepared:
        return prepare_text(author, author.task.read(cls.settings_type), cls.family, cls.special, progress)

    def __init__(self, resolved: RunSpec, assets: Path) -> None:
        if HELD_OUT not in resolved.assets:
            raise SpecError("this run spec is not resolved: it names no held-out text", remedy="Start a coordinator with it.")
        self.settings = settings = resolved.task.read(self.settings_type)
        self.held_out = read_held_out(assets / HELD_OUT)
        self.tokenizer = load_tokenizer(assets / TOKENIZER)
        require_special_tokens(self.tokenizer, self.special)
        self._config = model_config(settings, self.family, self.tokenizer)
        self._data = settings.data
        self._folder = resolved.folder

    @property
    @abstractmethod
    def separator(self) -> int:
        """The token between documents."""

    @property
    @abstractmethod
    def text_length(self) -> int:
        """How many of a sample's tokens hold text."""

    @property
    def data_source(self) -> str:  # type: ignore[override]
        return source_of(self._data)

    def use_own_data(self, paths: Sequence[str]) -> None:
        self._data = DataSpec(source="files", paths=list(paths), max_bytes=self._data.max_bytes)

    def use_served_data(self) -> None:
        require_no_local_paths(self._data)

    def use_trial_data(self) -> None:
        self.documents = self.held_out

    @cached_property
    def documents(self) -> Sequence[Document]:
        """The training text, without what nearly duplicates held-out text. Raises CorpusError when nothing remains."""
        documents = without_near_duplicates_of(load_documents(self._data, self._folder), self.held_out)
        if not documents:
            raise CorpusError("all of this machine's text is held-out text", remedy="Train on other text: task.data.paths.")
        return documents

    def build_model(self) -> nn.Module:
        return build_model(self.family, self._config)

    def initial_model(self, author: RunSpec) -> nn.Module:
        """The author's pretrained folder, or fresh weights."""
        pretrained = author.task.read(self.settings_type).model.pretrained
        if pretrained is not None:
            return pretrained_model(self.family, self._config, author.folder / pretrained)
        return self.build_model()

    def batches(self, *, seed: int, peer: str, micro_batch: int) -> Batches:
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}")
        _ = self.documents  # here, so that a missing corpus is the caller's error and not the thread's
        return Prefetched(lambda: self._make_batches(seed_of("order", seed, peer), micro_batch))

    def evaluate(self, model: nn.Module, max_samples: int | None = None) -> float:
        device = next(model.parameters()).device
        total, count = 0.0, 0
        with evaluating(model):
            for batch in self._held_out_batches(max_samples):
                losses, predicted = self.token_losses(model, to_device(batch, device))
                total += float(losses.double().sum())
                count += int(predicted.sum())
        return total / count

    def unigram_loss(self, max_samples: int | None = None) -> float:
        """Nats per token, on the tokens that `evaluate` predicts, of the training text's token frequencies. Costs seconds."""
        counts = torch.ones(self._config.vocab_size, dtype=torch.float64)  # add-one smoothing
        # Part of the text, spread over all of it, is enough: it is off by about vocabulary / (2 x tokens), some 0.001 nats.
        for document in thinned(self.documents, _UNIGRAM_CHARACTERS):
            ids = torch.tensor([*tokens_of(self.tokenizer, document.text), self.separator])
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
        """A sample's loss is its mean token loss in nats."""
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

    def save(self, model: nn.Module, folder: Path) -> None:
        """What transformers loads: config.json, model.safetensors, generation_config.json and the tokenizer."""
        saved: Any = model
        saved.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if saved.can_generate():
            # A config built from scratch carries its family's default ids, which this tokenizer may give to other words.
            generation = copy.deepcopy(saved.generation_config)  # the model keeps its own
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(generation, token, getattr(self.tokenizer, token, None))
            generation.save_pretrained(folder)

    def card(self, model: nn.Module) -> ModelCard:
        auto_class = self.family.auto.__name__
        loading = f"""\
from transformers import AutoTokenizer, {auto_class}

model = {auto_class}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
        return ModelCard(self._config.model_type, loading, library_name="transformers", pipeline_tag=self.pipeline_tag)

    @abstractmethod
    def generate(self, model: nn.Module, prompt: str, max_new_tokens: int, *, top_k: int = 0, seed: int = 0) -> str:
        """The prompt continued or filled in. Greedy when `top_k` is 0, else drawn from the k likeliest tokens."""

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
        sequences = training_sequences(self.documents, self.tokenizer, self.text_length, self.separator, seed)
        counter = 0
        while True:
            chosen = list(islice(sequences, micro_batch))
            yield self.collate(chosen, [seed_of(seed, i) for i in range(counter, counter + micro_batch)])
            counter += micro_batch

    @cached_property
    def _held_out_sequences(self) -> list[list[int]]:
        sequences = held_out_sequences(self.held_out, self.tokenizer, self.text_length, self.separator)
        if not sequences:
            raise CorpusError(
                "the held-out text does not fill one sequence", remedy="Raise task.data.held_out_bytes or add text."
            )
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
