"""What others build on: the command line, and the names that an example's task.py imports. A change here is a change for them."""

from __future__ import annotations

import typer.main

import dugnad
from protocols.tasks import base, batches, registry
from protocols.tasks.base import Task

COMMANDS = {
    "coordinator run": {"run", "directory", "host", "announce", "port", "json"},
    "coordinator invite": {"run", "directory", "name", "uses", "expires"},
    "coordinator peers": {"run", "directory", "json"},
    "coordinator kick": {"run", "peer", "of", "directory"},
    "coordinator ban": {"run", "peer", "of", "directory"},
    "coordinator unban": {"run", "peer", "of", "directory"},
    "peer": {
        *("ticket", "role", "client_mode", "device", "micro_batch", "precision", "threads", "compiled", "retune", "yes"),
        *("host", "port", "announce", "port_mapping", "max_upload", "max_download", "hours", "on_battery"),
        *("untouched", "share_gpu", "max_transfer", "load", "name", "data", "home"),
    },
    "pause": {"home", "lasting"},
    "resume": {"home"},
    "doctor": {"ticket", "device", "host", "port", "announce", "port_mapping", "data", "max_upload", "max_download", "json"},
    "status": {"ticket", "home", "json"},
    "demo": {"directory", "json"},
    "simulate": {"seeds", "peers", "workers", "hostile", "as_json"},
    "version": set(),
    "env": set(),
}


def test_the_commands_and_their_options_are_these() -> None:
    commands = dict(typer.main.get_command(dugnad.app).commands)  # type: ignore[attr-defined]
    beside = commands.pop("coordinator").commands
    commands |= {f"coordinator {name}": command for name, command in beside.items()}
    shown = {
        name: {parameter.name for parameter in command.params if not getattr(parameter, "hidden", False)} - {"help"}
        for name, command in commands.items()
    }
    assert shown == COMMANDS


def test_a_task_is_found_and_opened_through_these_names() -> None:
    assert registry.GROUP == "dugnad.tasks"
    assert registry.__all__ == ["GROUP", "checked", "find_task", "initial_model", "open_task", "prepare"]


def test_a_task_is_written_with_these_names() -> None:
    assert base.__all__ == ["Batch", "Batches", "ModelCard", "Prepared", "Task", "evaluating", "to_device"]
    assert batches.__all__ == ["Prefetched", "seed_of", "spread"]
    assert Task.__abstractmethods__ == {"__init__", "batches", "build_model", "evaluate", "loss"}
    hooks = {name for name in vars(Task) if not name.startswith("_")} - Task.__abstractmethods__
    assert hooks == {
        *("settings_type", "loss_unit", "prepare", "use_own_data", "use_served_data", "data_source", "initial_model"),
        "use_trial_data",
        *("samples_in", "save", "card", "loss_text"),
    }
