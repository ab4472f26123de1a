"""Events of a run as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from humanize import naturalsize

from protocols.host.reason_words import in_words
from protocols.host.terminal import display_name, duration, plural, printable
from protocols.reasons import Reason


def describe(record: Mapping[str, Any]) -> str:
    """One record of events.jsonl as one line for a person."""
    event = str(record["event"])
    who = display_name(str(record.get("name") or ""), str(record.get("peer") or ""))
    reason = printable(in_words(str(record.get("reason") or "no reason given")), 120)
    epoch = record.get("epoch", "?")
    if event == "run_started":
        return f"run {printable(str(record.get('run', '')))} started"
    if event == "run_resumed":
        return f"run {printable(str(record.get('run', '')))} resumed at epoch {epoch}"
    if event == "admitted":
        return printable(f"admitted {who} by the invite {record.get('invite', '?')} from {record.get('address', '?')}", 200)
    if event == "peer_joined":
        kinds = [record["role"]] if record.get("role") == "auxiliary" else []
        kinds += ["client-mode"] if record.get("reachable") is False else []
        return f"peer {who} joined" + (f" ({', '.join(kinds)})" if kinds else "")
    if event == "peer_left":
        return f"peer {who} said goodbye" if record.get("reason") == Reason.LEFT.value else f"peer {who} lost: {reason}"
    if event == "committed":
        parts = [plural(len(record.get("contributors") or ()), "peer"), plural(int(record.get("samples") or 0), "sample")]
        parts += [f"loss {_number(record['loss'])}"] if record.get("loss") is not None else []
        parts += [duration(float(record["seconds"]))] if record.get("seconds") is not None else []
        parts += [f"{record['attempts']} attempts"] if int(record.get("attempts") or 1) > 1 else []
        return f"epoch {epoch} committed: {', '.join(parts)}"
    if event == "attempt_failed":
        peer = f" ({who})" if record.get("peer") else ""
        after = f" after {duration(float(record['seconds']))}" if record.get("seconds") is not None else ""
        return f"attempt {record.get('attempt', '?')} of epoch {epoch} failed{after}: {reason}{peer}"
    if event == "evaluated":
        loss = record.get("loss")
        return f"held-out loss at epoch {epoch}: {'not finite' if loss is None else _number(loss)}"
    if event == "checkpoint_written":
        size = f" ({naturalsize(record['bytes'])}, {duration(float(record['seconds']))})" if "bytes" in record else ""
        return f"checkpoint of epoch {epoch} written{size}"
    if event == "checkpoint_failed":
        return f"checkpoint failed: {reason}"
    if event == "auxiliary_restarted":
        return f"auxiliary peer restarted: {reason}"
    if event == "run_finished":
        return f"run finished at epoch {epoch}" if "epoch" in record else "run finished"
    numbers = ", ".join(f"{key} {value}" for key, value in record.items() if key not in ("time", "event"))
    return printable(f"{event.replace('_', ' ')} {numbers}".strip(), 200)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
