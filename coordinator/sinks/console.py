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
from rich.text import Text

from coordinator.sinks.base import Sink
from coordinator.sinks.event_lines import describe
from coordinator.sinks.swarm_table import WIDE, epoch_text, peer_table, swarm_line
from coordinator.swarm_view import SwarmView
from protocols.committed_rate import CommittedRate
from protocols.host.screen import Screen
from protocols.host.terminal import (
    batch_bar,
    frame_title,
    labelled,
    log_lines,
    loss_line,
    printable,
    stacked,
)

EVENT_LINES = 6
_FRAME_ROWS = 8  # everything in the view but peers, events and status; and the line below it, where the cursor waits
_LOSSES_KEPT = 4096

_EVENT_STYLES = {
    "attempt_failed": "yellow",
    "auxiliary_restarted": "yellow",
    "checkpoint_failed": "bold red",
    "checkpoint_written": "green",
    "peer_left": "yellow",
    "peer_joined": "green",
    "run_finished": "bold green",
}


class Console(Sink):
    """The organiser's screen. `swarm` and `event` only store what to show; a thread of the screen's own draws it."""

    def __init__(
        self,
        *,
        terminal: Terminal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen = Screen(self._render, terminal)
        self._clock = clock
        self._lock = threading.Lock()
        self._view: SwarmView | None = None
        self._spinner: Spinner | None = None
        self._status = ""
        self._events: deque[Text] = deque(maxlen=EVENT_LINES)
        self._losses: deque[float] = deque(maxlen=_LOSSES_KEPT)
        self._held_out: tuple[int, float] | None = None
        self._rate = CommittedRate(clock)

    def __enter__(self) -> Console:
        self._screen.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back. From now on each message is a plain line.

        A second Ctrl-C calls this from its signal handler, so it must not wait for a lock that the same thread may hold.
        """
        self._spinner = None
        self._screen.__exit__(None, None, None)

    def swarm(self, view: SwarmView) -> None:
        """Show this view from now on. The first view ends the start-up status."""
        with self._lock:
            if self._view is None:
                self._spinner, self._status = None, ""
            self._rate.reached(view.epoch, view.total_samples)
            self._view = view

    def event(self, record: Mapping[str, Any]) -> None:
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
        """Say which long work is under way; None when it is done."""
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
            pace, left_s = self._rate.samples_per_second, self._rate.seconds_left(view.max_epochs if view is not None else None)
        if view is None:
            return stacked([log_lines(events) if events else None, spinner])
        width = self._screen.terminal.width
        note = f"held-out {held_out[1]:.3f} at epoch {held_out[0]}" if held_out else ""
        rows: list[tuple[str, RenderableType]] = [
            ("batch", batch_bar(view.samples, view.target_batch_size)),
            ("loss", loss_line(losses, note if width >= WIDE or not losses else note.split(" at ")[0], width - 14)),
            ("swarm", swarm_line(view, pace, left_s)),
        ]
        grid, terminal = labelled(rows), self._screen.terminal
        broken = len(terminal.render_lines(grid, terminal.options.update_width(width - 4))) - len(rows)
        room = max(4, terminal.height - _FRAME_ROWS - broken - (spinner is not None))
        # On a low screen the peers keep at least three rows, and the oldest events give way.
        events = events[-max(1, room - 1 - min(len(view.peers), 3)) :]
        body: list[RenderableType | None] = [
            grid,
            "",
            peer_table(view.peers, width, room - len(events) - bool(events)),
        ]
        if events:
            body += ["", log_lines(events)]
        body.append(spinner)
        title = frame_title(view.run, epoch_text(view), "", width)
        return Panel(stacked(body), title=title, title_align="left", border_style="dim")
