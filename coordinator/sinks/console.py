"""The organiser's live view of the swarm: where the batch stands, how the loss goes, who is there, what happened last."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from coordinator.swarm_view import SwarmView
from protocols.host.terminal import (
    Screen,
    batch_bar,
    data_size,
    display_name,
    duration,
    labelled,
    log_lines,
    loss_line,
    plural,
    printable,
    rate,
    short_id,
    stacked,
)
from protocols.observations import PeerView

EVENT_LINES = 6
WIDE = 84  # columns from which each property of a peer gets a column of its own
_FRAME_ROWS = 8  # everything in the view but peers, events and status; and the line below it, where the cursor waits
_LOSSES_KEPT = 4096

_STATE_STYLES = {"training": "green", "averaging": "cyan", "catching up": "yellow", "silent": "red"}
_EVENT_STYLES = {
    "attempt_failed": "yellow",
    "auxiliary_restarted": "yellow",
    "checkpoint_failed": "bold red",
    "checkpoint_written": "green",
    "peer_left": "yellow",
    "peer_joined": "green",
    "run_finished": "bold green",
}


class Console:
    """Shows what it was last told. `update` and `event` only store, so they cost next to nothing on the calling thread."""

    def __init__(
        self,
        stderr_is_tty: bool | None = None,
        *,
        terminal: Terminal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen = Screen(self._render, stderr_is_tty=stderr_is_tty, terminal=terminal)
        self._clock = clock
        self._lock = threading.Lock()
        self._view: SwarmView | None = None
        self._spinner: Spinner | None = None
        self._status = ""
        self._events: deque[Text] = deque(maxlen=EVENT_LINES)
        self._losses: deque[float] = deque(maxlen=_LOSSES_KEPT)
        self._held_out: tuple[int, float] | None = None
        self._pace: deque[tuple[float, int]] = deque(maxlen=64)  # (clock, epoch) at each change of epoch

    def __enter__(self) -> Console:
        self._screen.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._spinner = None
        self._screen.__exit__(kind, error, trace)

    def close(self) -> None:
        """Give the terminal back; what is said from now on are plain lines."""
        self._screen.__exit__(None, None, None)

    def update(self, view: SwarmView) -> None:
        """Show this view from now on. The first one ends the start-up status."""
        with self._lock:
            if self._view is None:
                self._spinner, self._status = None, ""
            if self._view is None or view.epoch != self._view.epoch:
                self._pace.append((self._clock(), view.epoch))
            self._view = view

    def event(self, record: Mapping[str, Any]) -> None:
        """Take in one record of events.jsonl."""
        line = describe(record)
        at = datetime.fromtimestamp(float(record["time"])).strftime("%H:%M:%S")
        styled = Text.assemble((at, "dim"), " ", (line, _EVENT_STYLES.get(str(record["event"]), "")))
        with self._lock:
            loss = record.get("loss")
            if isinstance(loss, (int, float)) and math.isfinite(loss):
                if record["event"] == "committed":
                    self._losses.append(float(loss))
                elif record["event"] == "evaluated":
                    self._held_out = (int(record["epoch"]), float(loss))
            self._events.append(styled)
        if not self._screen.is_live:
            self._screen.say(f"{at} {line}")

    def status(self, text: str | None) -> None:
        """Long start-up work that is under way; None when it is done."""
        with self._lock:
            if (text or "") == self._status:
                return
            self._status = text or ""
            self._spinner = Spinner("dots", Text(printable(text, 200)), style="cyan") if text else None
        if text and not self._screen.is_live:
            self._screen.say(printable(text, 200))

    def say(self, line: str) -> None:
        """A line that stays on the screen, above the live view."""
        self._screen.say(line)

    def _render(self) -> RenderableType:
        with self._lock:
            view, spinner = self._view, self._spinner
            events, losses, held_out = list(self._events), list(self._losses), self._held_out
            eta = self._eta(view) if view is not None else ""
        if view is None:
            return stacked([log_lines(events) if events else None, spinner])
        width = self._screen.width
        note = f"held-out {held_out[1]:.3f} at epoch {held_out[0]}" if held_out else ""
        rows: list[tuple[str, RenderableType]] = [
            ("batch", batch_bar(view.samples, view.target_batch_size)),
            ("loss", loss_line(losses, note if width >= WIDE or not losses else note.split(" at ")[0], width - 14)),
            ("swarm", _swarm_line(view, eta)),
        ]
        room = max(4, self._screen.height - _FRAME_ROWS - (spinner is not None))
        # On a low screen the peers keep at least three rows, and the oldest events give way.
        events = events[-max(1, room - 1 - min(len(view.peers), 3)) :]
        of = f" of {view.max_epochs:,}" if view.max_epochs is not None else ""
        return Panel(
            stacked(
                [
                    labelled(rows),
                    "",
                    _peer_table(view.peers, width, room - len(events) - bool(events)),
                    "" if events else None,
                    log_lines(events) if events else None,
                    spinner,
                ]
            ),
            title=Text.assemble(
                ("dugnad", "bold"), " · ", printable(view.run, 32), " · ", (f"epoch {view.epoch:,}{of}", "bold cyan")
            ),
            title_align="left",
            border_style="dim",
        )

    def _eta(self, view: SwarmView) -> str:
        if view.max_epochs is None or len(self._pace) < 2:
            return ""
        (began, first), (last, epoch) = self._pace[0], self._pace[-1]
        if epoch <= first or last <= began:
            return ""
        left = (view.max_epochs - view.epoch) * (last - began) / (epoch - first) - (self._clock() - last)
        return f"{duration(max(1.0, left)) if left >= 10 else 'a few seconds'} left" if view.epoch < view.max_epochs else ""


def render_view(view: SwarmView, width: int) -> RenderableType:
    """The swarm at one instant, as `dugnad status` prints it."""
    of = f" of {view.max_epochs:,}" if view.max_epochs is not None else ""
    rows: list[tuple[str, RenderableType]] = [
        ("run", Text.assemble((printable(view.run, 32), "bold"), " · ", (f"epoch {view.epoch:,}{of}", "bold cyan"))),
        ("batch", batch_bar(view.samples, view.target_batch_size)),
        ("swarm", _swarm_line(view, "")),
    ]
    return stacked([labelled(rows), "", _peer_table(view.peers, width, len(view.peers) + 1)])


def _swarm_line(view: SwarmView, eta: str) -> Text:
    if not view.peers:
        return Text("waiting for the first peer", style="dim")
    contributors = sum(peer.role == "contributor" and peer.state != "silent" for peer in view.peers)
    # The most telling first: a narrow terminal cuts the end.
    parts = [plural(contributors, "contributor"), f"{rate(view.samples_per_second)} samples/s", eta]
    parts.append(f"{view.total_samples:,} samples in all")
    return Text(" · ".join(part for part in parts if part))


def _peer_table(peers: tuple[PeerView, ...], width: int, room: int) -> RenderableType:
    if not peers:
        return Text("no peer yet: send the ticket to somebody", style="dim")
    wide = width >= WIDE
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", width=1)
    table.add_column("peer", ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column("role", min_width=11, no_wrap=True)
    if wide:
        table.add_column("link", min_width=11, no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("samples/s" if wide else "per s", justify="right", no_wrap=True)
    if wide:
        table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("state", min_width=12, no_wrap=True)
    ordered = sorted(peers, key=lambda peer: (not peer.is_leader, peer.role == "auxiliary", peer.name, peer.peer))
    shown = ordered if len(ordered) <= room else ordered[: room - 1]
    for peer in shown:
        link = "reachable" if peer.reachable else "client-mode"
        auxiliary = peer.role == "auxiliary"
        role = peer.role if wide or auxiliary or peer.reachable else link
        style = _STATE_STYLES.get(peer.state, "")
        cells = [
            Text("★" if peer.is_leader else "", style="yellow"),
            Text.assemble(printable(peer.name, 24) or "peer", " ", (short_id(peer.peer), "dim")),
            Text(role, style="dim" if auxiliary else ""),
            *([Text(link, style="" if peer.reachable else "dim")] if wide else []),
            Text("–" if auxiliary else f"{peer.samples:,}"),
            Text("–" if auxiliary else rate(peer.samples_per_second)),
            *([Text(f"{peer.epoch:,}")] if wide else []),
            Text(("○ " if peer.state == "silent" else "● ") + printable(peer.state, 16), style=style),
        ]
        table.add_row(*cells)
    if len(shown) < len(ordered):
        table.add_row("", Text(f"… and {len(ordered) - len(shown):,} more", style="dim"))
    return table


def describe(record: Mapping[str, Any]) -> str:
    """One record of events.jsonl as one line for a person."""
    event = str(record["event"])
    who = display_name(str(record.get("name") or ""), str(record.get("peer") or ""))
    reason = printable(str(record.get("reason") or "no reason given"), 120)
    epoch = record.get("epoch", "?")
    if event == "run_started":
        return f"run {printable(str(record.get('run', '')))} started"
    if event == "run_resumed":
        return f"run {printable(str(record.get('run', '')))} resumed at epoch {epoch}"
    if event == "peer_joined":
        kinds = [record["role"]] if record.get("role") == "auxiliary" else []
        kinds += ["client-mode"] if record.get("reachable") is False else []
        return f"peer {who} joined" + (f" ({', '.join(kinds)})" if kinds else "")
    if event == "peer_left":
        return f"peer {who} said goodbye" if reason == "left" else f"peer {who} lost: {reason}"
    if event == "committed":
        parts = [plural(len(record.get("contributors") or ()), "peer"), plural(int(record.get("samples") or 0), "sample")]
        parts += [f"loss {_number(record['loss'])}"] if record.get("loss") is not None else []
        parts += [duration(float(record["seconds"]))] if record.get("seconds") is not None else []
        parts += [f"{record['attempts']} attempts"] if int(record.get("attempts") or 1) > 1 else []
        return f"epoch {epoch} committed: {', '.join(parts)}"
    if event == "attempt_failed":
        peer = f" ({short_id(str(record['peer']))})" if record.get("peer") else ""
        return f"attempt {record.get('attempt', '?')} of epoch {epoch} failed: {reason}{peer}"
    if event == "evaluated":
        loss = record.get("loss")
        return f"held-out loss at epoch {epoch}: {'not finite' if loss is None else _number(loss)}"
    if event == "checkpoint_written":
        size = f" ({data_size(float(record['bytes']))}, {duration(float(record['seconds']))})" if "bytes" in record else ""
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
