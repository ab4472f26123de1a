"""Task: what a peer's loop needs to know about what is being learnt, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

Batch: TypeAlias = dict[str, Tensor]
"""Tensors whose first dimension is the sample. A task makes them on the CPU; the peer moves them with `to_device`."""


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


class Batches(ABC):
    """An endless iterator of batches with something to release at the end: a context manager, or call `close`."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    @abstractmethod
    def __next__(self) -> Batch: ...

    @abstractmethod
    def close(self) -> None:
        """Stop preparing batches and wait until that has stopped. Harmless the second time."""

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class Task(ABC):
    """Model, data and loss of a run. What it returns depends on the resolved spec and on its arguments alone."""

    tokenizer: PreTrainedTokenizerFast

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The architecture in float32. Weights are drawn from torch's generator, for a snapshot to overwrite."""

    @abstractmethod
    def batches(self, *, seed: int, peer: str, micro_batch: int) -> Batches:
        """Endless batches of `micro_batch` samples, in an order that depends on (seed, peer) alone, whatever the micro-batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scalar: the sum over the batch's samples of each sample's mean token loss in nats.

        A sum, so that gradients of several micro-batches add up and the average over all peers' samples is one division.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, max_samples: int | None = None) -> float:
        """Held-out loss in nats per predicted token. Leaves the model in the mode in which it found it."""

    @abstractmethod
    def unigram_loss(self, max_samples: int | None = None) -> float:
        """Nats per token, on the tokens that `evaluate` predicts, of the training text's token frequencies. Costs seconds."""

    @abstractmethod
    def generate(self, model: nn.Module, prompt: str, max_new_tokens: int, *, top_k: int = 0, seed: int = 0) -> str:
        """The prompt continued or filled in. Greedy when `top_k` is 0, else drawn from the k likeliest tokens."""

    @staticmethod
    def samples_in(batch: Batch) -> int:
        return len(next(iter(batch.values())))
