"""What others build on: the command line, and the names that an example's task.py imports. A change here is a change for them."""

from __future__ import annotations

import inspect

import typer.main

import dugnad
from protocols.tasks import registry as task
from protocols.tasks.base import Task

COMMANDS = {
    "coordinator": {"run", "directory", "host", "announce", "port", "json"},
    "peer": {
        *("ticket", "role", "client_mode", "device", "micro_batch", "threads"),
        *("host", "port", "announce", "max_upload", "max_download", "name", "data", "home"),
    },
    "status": {"ticket", "json"},
    "demo": {"directory", "json"},
    "simulate": {"seeds", "peers", "workers", "as_json"},
    "version": set(),
    "env": set(),
}


def test_the_commands_and_their_options_are_these() -> None:
    group = typer.main.get_command(dugnad.app)
    shown = {
        name: {parameter.name for parameter in command.params if not getattr(parameter, "hidden", False)} - {"help"}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert shown == COMMANDS


def test_a_task_is_opened_and_made_through_these_names() -> None:
    assert task.__all__ == [
        "Batch",
        "Batches",
        "Task",
        "initial_model",
        "open_task",
        "prepare",
        "read_asset",
        "to_device",
        "write_asset",
    ]
    methods = {name for name, member in inspect.getmembers(Task, inspect.isfunction) if not name.startswith("_")}
    assert methods == {"batches", "build_model", "evaluate", "generate", "loss", "samples_in", "unigram_loss"}
