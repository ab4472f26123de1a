"""Task: what a run learns. The only thing that peers and the coordinator know about model, data and loss.

A task is a class that an installed package names in the entry-point group `dugnad.tasks`; see `protocols/tasks/registry.py`.

author's spec --Task.prepare--> settings and files for all machines --Task(resolved, assets)--> batches, loss, checkpoints
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeAlias

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from protocols.errors import UsageError
from protocols.run_spec import RunSpec
from protocols.sections import Section

__all__ = ["Batch", "Batches", "ModelCard", "Prepared", "Task", "evaluating", "to_device"]

Batch: TypeAlias = dict[str, Tensor]
"""Tensors whose first dimension is the sample. A task makes them on the CPU; the peer moves them with `to_device`."""


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is in the mode in which it was found."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


class Batches(Iterator[Batch], AbstractContextManager["Batches"]):
    """An endless iterator of batches with something to release at the end: a context manager, or call `close`."""

    @abstractmethod
    def close(self) -> None:
        """Stop preparing batches and wait until that has stopped. Harmless the second time."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Prepared:
    """What the coordinator found out once, so that all machines agree on it."""

    settings: Section
    """The task's settings as peers shall read them: nothing in them depends on the author's disk."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files that every machine needs, by relative name; at most MAX_ASSETS of MAX_ASSETS_BYTES together."""


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint's README.md says about the model, beyond the run's numbers."""

    architecture: str
    loading: str
    """Python that loads the model from the folder "path/to/this/folder"."""
    library_name: str | None = None
    """The Hugging Face hub's name of the library that loads it."""
    pipeline_tag: str | None = None
    """The Hugging Face hub's name of what it is for, such as "text-generation"."""


class Task(ABC):
    """Model, data and loss of a run. What it returns depends on the resolved spec, its assets and its arguments alone."""

    settings_type: ClassVar[type[Section]] = Section
    """The keys of `[task]` in the run file, besides `kind` and `package`."""

    loss_unit: ClassVar[str] = "nats per sample"
    """What `evaluate` returns."""

    # Before a run

    @classmethod
    def prepare(cls, author: RunSpec, progress: Callable[[str], None]) -> Prepared:
        """Called once, on the coordinator. Relative paths start from `author.folder`. Raises DugnadError."""
        return Prepared(author.task.read(cls.settings_type))

    @abstractmethod
    def __init__(self, resolved: RunSpec, assets: Path) -> None:
        """`assets` is the folder with the files that `prepare` returned, checked. Who only averages reads no training data."""

    # On a volunteer's computer, before any training data is read

    data_source: str = "what the run's task brings along"
    """What this machine reads or fetches to train on, in words for the volunteer who is asked to agree."""

    def use_own_data(self, paths: Sequence[str]) -> None:
        """Train on these files or globs of the volunteer's in place of the run's data (`dugnad peer --data`)."""
        raise UsageError("this run's task brings its own data, so that --data has no meaning", remedy="Leave --data out.")

    def use_served_data(self) -> None:  # noqa: B027  most tasks have nothing to refuse
        """Train on what the spec names. Raises UsageError when that is on this machine's disk: a spec that came over the network
        must not say which of a volunteer's files are read."""

    def use_trial_data(self) -> None:  # noqa: B027  most tasks bring their data along
        """Make batches of what came with the run's files: to measure a computer, nothing of it is read, and nothing fetched."""

    # The model

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The architecture in float32. Weights are drawn from torch's generator, for a snapshot to overwrite."""

    def initial_model(self, author: RunSpec) -> nn.Module:
        """The model at epoch 0, on the coordinator, where the author's own files are. torch's generator is seeded."""
        return self.build_model()

    # While training

    @abstractmethod
    def batches(self, *, seed: int, peer: str, micro_batch: int) -> Batches:
        """Endless batches of `micro_batch` samples, in an order that depends on (seed, peer) alone, whatever the micro-batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scalar: the sum over the batch's samples of each sample's loss.

        A sum, so that gradients of several micro-batches add up and the average over all peers' samples is one division.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, max_samples: int | None = None) -> float:
        """Held-out loss in `loss_unit`, on at most `max_samples`. Leaves the model in the mode in which it found it."""

    @staticmethod
    def samples_in(batch: Batch) -> int:
        return len(next(iter(batch.values())))

    # Checkpoints

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what others load the model from. The coordinator adds the run spec, the model card and the training state."""
        save_model(model, str(folder / "model.safetensors"))

    def card(self, model: nn.Module) -> ModelCard:
        loading = 'from safetensors.torch import load_file\n\nparameters = load_file("path/to/this/folder/model.safetensors")'
        return ModelCard(type(model).__name__, loading)

    def loss_text(self, loss: float) -> str:
        """A held-out loss for people."""
        return f"{loss:.4f} {self.loss_unit}"
