"""Task packages that a test installs: a module and its metadata in a folder, as pip would leave them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, tasks: Mapping[str, str], source: str = "") -> None:
    """Put a package on the path until the test ends. `tasks` maps a task's name to "module:Class"; `source` is that module."""
    metadata = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in tasks.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[dugnad.tasks]", *lines, ""]))
    for module in {value.partition(":")[0].partition(".")[0] for value in tasks.values()}:
        if source:
            (folder / f"{module}.py").write_text(textwrap.dedent(source))
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)


LINES = '''
    """A straight line through points that the coordinator drew: y = 3x + 1. No text, and one asset."""

    import json

    import torch
    from torch import nn

    from protocols.sections import Section
    from protocols.tasks.base import Prepared, Task, evaluating
    from protocols.tasks.batches import Prefetched, seed_of


    class Settings(Section):
        points: int = 8


    class Lines(Task):
        settings_type = Settings
        loss_unit = "squared error per point"

        @classmethod
        def prepare(cls, author, progress):
            settings = author.task.read(Settings)
            progress("Drawing the points")
            xs = torch.rand(settings.points, generator=torch.Generator().manual_seed(author.run.seed)).tolist()
            return Prepared(settings, {"points.json": json.dumps(xs).encode()})

        def __init__(self, resolved, assets):
            xs = torch.tensor(json.loads((assets / "points.json").read_bytes())).unsqueeze(1)
            self.held_out = {"x": xs, "y": 3 * xs + 1}

        def build_model(self):
            return nn.Linear(1, 1)

        def batches(self, *, seed, peer, micro_batch):
            return Prefetched(lambda: self.draw(torch.Generator().manual_seed(seed_of(seed, peer)), micro_batch))

        def draw(self, generator, micro_batch):
            while True:
                xs = torch.rand(micro_batch, 1, generator=generator)
                yield {"x": xs, "y": 3 * xs + 1}

        def loss(self, model, batch):
            return ((model(batch["x"]) - batch["y"]) ** 2).sum()

        def evaluate(self, model, max_samples=None):
            with evaluating(model):
                return self.loss(model, self.held_out).item() / self.samples_in(self.held_out)
'''


def install_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task "lines" of package some-lines."""
    install(folder, monkeypatch, "some-lines", {"lines": "some_lines:Lines"}, LINES)
