"""Tell handwritten digits apart: 1797 grey images of 8 x 8 pixels, which scikit-learn brings along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from sklearn.datasets import load_digits
from torch import Tensor, nn

from protocols.run_spec import RunSpec
from protocols.sections import Section
from protocols.tasks.base import Batch, Batches, ModelCard, Task, evaluating, to_device
from protocols.tasks.batches import Prefetched, seed_of, spread

CLASSES = 10


class Settings(Section):
    """The keys of [task], besides `kind`."""

    channels: int = Field(default=16, ge=1, le=1024)
    """Width of the first convolution; the second has twice as many."""

    held_out_images: int = Field(default=360, ge=1, le=1700)
    """Images that nobody trains on."""


def network(channels: int) -> nn.Module:
    """From pixels (images, 1, 8, 8) to logits (images, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * 2 * 2, CLASSES),
    )


class Digits(Task):
    """A sample is one image. Every machine has the same images, and run.seed decides which are held out: no assets are needed."""

    settings_type = Settings
    loss_unit = "nats per image"

    def __init__(self, resolved: RunSpec, assets: Path) -> None:
        self.settings = resolved.task.read(Settings)
        found = load_digits()
        pixels = torch.from_numpy(found.images).float().unsqueeze(1) / 16  # (images, 1, 8, 8), from 0 to 1
        labels = torch.from_numpy(found.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(resolved.run.seed))
        held_out, training = order[: self.settings.held_out_images], order[self.settings.held_out_images :]
        self.held_out: Batch = {"pixels": pixels[held_out], "labels": labels[held_out]}
        self.training: Batch = {"pixels": pixels[training], "labels": labels[training]}

    def build_model(self) -> nn.Module:
        return network(self.settings.channels)

    def batches(self, *, seed: int, peer: str, micro_batch: int) -> Batches:
        return Prefetched(lambda: self._draw(seed_of("digits", seed, peer), micro_batch))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch["pixels"]), batch["labels"], reduction="sum")

    def evaluate(self, model: nn.Module, max_samples: int | None = None) -> float:
        batch = self._held_out(max_samples, model)
        with evaluating(model):
            return float(self.loss(model, batch)) / self.samples_in(batch)

    def accuracy(self, model: nn.Module, max_samples: int | None = None) -> float:
        """Share of the held-out images that the model reads right."""
        batch = self._held_out(max_samples, model)
        with evaluating(model):
            return float((model(batch["pixels"]).argmax(dim=1) == batch["labels"]).float().mean())

    def card(self, model: nn.Module) -> ModelCard:
        loading = f"""\
from dugnad_digits.task import network
from safetensors.torch import load_file

model = network(channels={self.settings.channels})
model.load_state_dict(load_file("path/to/this/folder/model.safetensors"))"""
        return ModelCard("convolutional-network", loading, pipeline_tag="image-classification")

    def _held_out(self, max_samples: int | None, model: nn.Module) -> Batch:
        chosen = spread(self.samples_in(self.held_out), max_samples)
        batch = {name: tensor[chosen] for name, tensor in self.held_out.items()}
        return to_device(batch, next(model.parameters()).device)

    def _draw(self, seed: int, micro_batch: int) -> Iterator[Batch]:
        """Endless passes over the training images, each in another order; micro-batches cut one and the same stream."""
        generator = torch.Generator().manual_seed(seed)
        stream = torch.empty(0, dtype=torch.long)
        while True:
            while len(stream) < micro_batch:
                stream = torch.cat([stream, torch.randperm(len(self.training["labels"]), generator=generator)])
            chosen, stream = stream[:micro_batch], stream[micro_batch:]
            yield {name: tensor[chosen] for name, tensor in self.training.items()}
