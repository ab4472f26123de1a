"""From a RunSpec to a Task: finding the task, what the coordinator prepares once, and what every machine opens.

A task comes from a package that somebody installed here: an entry point of the group `dugnad.tasks` names its class. A run spec
names the task and the package; it never brings code, and nothing here asks the network.

author's spec --prepare--> resolved spec + directory/assets/ --open_task--> Task
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import torch
from torch import nn

from protocols.errors import SpecError
from protocols.run_spec import RunSpec, TaskSpec
from protocols.tasks.assets import create_assets, folder_of, read_asset
from protocols.tasks.base import Task

__all__ = ["GROUP", "checked", "find_task", "initial_model", "open_task", "prepare"]

GROUP = "dugnad.tasks"


def find_task(task: TaskSpec) -> type[Task]:
    """The class of an installed task. Raises SpecError when there is none of that name, more than one, or it cannot be loaded."""
    entry = _entry(task)
    where = f'task "{task.kind}" of package {_package(entry)}'
    try:
        found = entry.load()
    except Exception as error:  # whatever a volunteer's package raises while it is imported
        raise SpecError(
            f"{where} cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            remedy=f"Install {_package(entry)} again with what it needs, into the Python that runs dugnad.",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise SpecError(f"{where} is no task: {entry.value} is not a subclass of Task", remedy="Tell the package's author.")
    return found


def checked(author: RunSpec) -> RunSpec:
    """The author's spec, its task's settings checked and defaults written out: equal runs then have equal digests."""
    return author.model_copy(update={"task": author.task.with_settings(author.task.read(find_task(author.task).settings_type))})


def prepare(author: RunSpec, directory: Path, progress: Callable[[str], None]) -> RunSpec:
    """Resolve the author's spec: write `directory/assets` and return the spec that names those files' digests.

    Relative paths start from `author.folder`. Raises SpecError, CorpusError or DiskError.
    """
    package = _package(_entry(author.task))
    prepared = find_task(author.task).prepare(author, progress)
    task = author.task.model_copy(update={"package": package}).with_settings(prepared.settings)
    assets = create_assets(directory, prepared.files)
    # Through TOML and back: what is checked and digested here is exactly what peers will read.
    return RunSpec.from_toml(author.model_copy(update={"task": task, "assets": assets}).to_toml(), author.folder)


def open_task(resolved: RunSpec, directory: Path, *, data_paths: Sequence[str] | None = None) -> Task:
    """The run's task from a resolved spec and `directory/assets`, whose files are checked against the spec first.

    Training data is read when batches are first asked for. Without `data_paths` that is what the spec names, from
    `resolved.folder`: on the organiser's machine. On a volunteer's they are what the volunteer named, () for nothing.

    Raises SpecError, BadMessageError when an asset is not what the spec names, or UsageError when a volunteer has to name data.
    """
    kind = find_task(resolved.task)
    for name in resolved.assets:
        read_asset(resolved, directory, name)
    task = kind(resolved, folder_of(directory))
    if data_paths:
        task.use_own_data(data_paths)
    elif data_paths is not None:
        task.use_served_data()
    return task


def initial_model(author: RunSpec, resolved: RunSpec, directory: Path) -> nn.Module:
    """The model at epoch 0. Whatever is drawn for it comes from run.seed; torch's generator is left as it was."""
    task = open_task(resolved, directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(resolved.run.seed)
        return task.initial_model(author)


def _entry(task: TaskSpec) -> EntryPoint:
    installed = list(entry_points(group=GROUP))
    named = [entry for entry in installed if entry.name == task.kind]
    fitting = [entry for entry in named if task.package is None or _spelling(task.package) == _package(entry)]
    if len(fitting) == 1:
        return fitting[0]
    packages = ", ".join(sorted(_package(entry) for entry in named))
    if fitting:
        raise SpecError(
            f'task "{task.kind}" is offered by more than one installed package: {packages}',
            remedy="Set task.package to one of them, or uninstall the others.",
        )
    if named:
        raise SpecError(
            f'this run\'s task "{task.kind}" is that of package {task.package}; the one installed here is of {packages}',
            remedy=f"Install {task.package}, if you trust it.",
        )
    raise SpecError(f'task "{task.kind}" is not installed here', remedy=_how_to_get(task, {entry.name for entry in installed}))


def _how_to_get(task: TaskSpec, installed: set[str]) -> str:
    if not installed:
        return "No task is, not even dugnad's own: install dugnad itself again (make install, or pip install)."
    if task.package is not None:
        way = f"Install the package {task.package} if you trust it; the run's organiser knows where it comes from."
    elif near := difflib.get_close_matches(task.kind, sorted(installed), n=1):
        way = f'Did you mean "{near[0]}"?'
    else:
        way = "Install the package that brings it: tasks are never fetched over the network."
    return f"{way} Installed: {', '.join(sorted(installed))}."


def _package(entry: EntryPoint) -> str:
    return _spelling(entry.dist.name) if entry.dist is not None else "unknown"


def _spelling(package: str) -> str:
    """Packages have many spellings and one normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:200]
