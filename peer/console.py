"""A volunteer's screen: what this machine gives, where the swarm stands, and that it was of use."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

from humanize import naturalsize
from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from protocols.host.readable_log import screen
from protocols.host.screen import Screen
from protocols.host.terminal import (
    batch_bar,
    frame_title,
    labelled,
    log_lines,
    loss_line,
    plural,
    printable,
    rate,
    stacked,
    time_left,
)
from protocols.observations import Evaluation

EVENT_LINES = 4
PLAIN_LINE_EVERY_S = 10.0
_LOSSES_KEPT = 1024


@dataclass(frozen=True)
class PeerStatus:
    """This peer and its swarm at one instant. `contributions` and `contributed_samples` count what commits named of ours.

    `share` and `rank` (place, of how many) are of all samples that were committed since this peer joined.
    """

    epoch: int
    my_samples: int
    swarm_samples: int
    target_batch_size: int
    my_samples_per_second: float
    swarm_samples_per_second: float | None  # committed, over recent epochs
    loss: float | None
    held_out: Evaluation | None
    peers: int
    leader: str  # its name
    contributions: int
    contributed_samples: int
    share: float
    rank: tuple[int, int]
    phase: str
    run: str
    max_epochs: int | None
    left_s: float | None  # until the last epoch, at that pace

    @property
    def given(self) -> str:
        place, of = self.rank
        what = f"{plural(self.contributions, 'contribution')}, {plural(self.contributed_samples, 'sample')}"
        return what if of < 2 else f"{what}: {self.share:.0%} of all since you joined, place {place} of {of}"


class PeerConsole:
    """Shows what it was last told. `update` only stores, so it costs next to nothing on the calling thread."""

    def __init__(
        self,
        *,
        terminal: Terminal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen = Screen(self._render, terminal)
        self._clock = clock
        self._lock = threading.Lock()
        self._status: PeerStatus | None = None
        self._step = ""
        self._spinner: Spinner | None = None
        self._transfer: tuple[int, int] | None = None
        self._transfer_began = 0.0
        self._events: deque[Text] = deque(maxlen=EVENT_LINES)
        self._losses: deque[float] = deque(maxlen=_LOSSES_KEPT)
        self._loss_epoch = -1
        self._thanked = False
        self._last_plain = -math.inf

    def __enter__(self) -> PeerConsole:
        self._screen.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._spinner = None
        self._screen.__exit__(kind, error, trace)

    def close(self) -> None:
        """Give the terminal back; what is said from now on are plain lines."""
        self._screen.__exit__(None, None, None)

    def status(self, text: str | None, done: int | None = None, total: int | None = None) -> None:
        """A step that is under way; with `done` and `total` (bytes) a transfer. None, or the next `update`, ends it."""
        with self._lock:
            is_new = (text or "") != self._step
            if is_new:
                self._step = text or ""
                self._spinner = Spinner("dots", Text(printable(text, 120)), style="cyan") if text else None
                self._transfer_began = self._clock()
            self._transfer = (done, total) if done is not None and total else None
            due = is_new or self._clock() - self._last_plain >= PLAIN_LINE_EVERY_S
            if not text or self._screen.is_live or not due:
                return
            self._last_plain = self._clock()
            line = printable(text, 120) + (f": {naturalsize(done)} of {naturalsize(total)}" if done is not None and total else "")
        self._say_plain(line)

    def update(self, status: PeerStatus) -> None:
        with self._lock:
            self._step, self._spinner, self._transfer = "", None, None
            self._status = status
            if status.loss is not None and math.isfinite(status.loss):
                if status.epoch != self._loss_epoch:
                    self._losses.append(status.loss)
                    self._loss_epoch = status.epoch
                else:
                    self._losses[-1] = status.loss
            due = not self._screen.is_live and self._clock() - self._last_plain >= PLAIN_LINE_EVERY_S
            if due:
                self._last_plain = self._clock()
        if due:
            self._say_plain(_plain(status))

    def contributed(self, epoch: int, samples: int) -> None:
        """A commit named this peer's contribution. The first one is worth a word."""
        with self._lock:
            if self._thanked:
                return
            self._thanked = True
        self.event(f"Your first contribution is in: epoch {epoch:,}, {plural(samples, 'sample')}.")

    def event(self, text: str) -> None:
        line = printable(text, 300)
        screen.info(line)
        at = _time_of_day()
        with self._lock:
            self._events.append(Text.assemble((at, "dim"), " ", line))
        if not self._screen.is_live:
            self._screen.say(f"{at} {line}")

    def say(self, line: str) -> None:
        """A line that stays on the screen, above the live view."""
        self._screen.say(line)

    def _say_plain(self, line: str) -> None:
        self._screen.say(f"{_time_of_day()} {line}")

    def _render(self) -> RenderableType:
        with self._lock:
            status, spinner, transfer, began = self._status, self._spinner, self._transfer, self._transfer_began
            events, losses = list(self._events), list(self._losses)
        step = None
        if spinner is not None:
            step = spinner if transfer is None else _transfer_line(spinner, *transfer, seconds=self._clock() - began)
        if status is None:
            return stacked([log_lines(events) if events else None, step])
        swarm = [plural(status.peers, "peer"), _pace(status), time_left(status.left_s)]
        swarm += [f"leader {printable(status.leader, 32)}"] if status.leader else []
        mine = [f"{rate(status.my_samples_per_second)} samples/s", f"{plural(status.my_samples, 'sample')} in this batch"]
        given = Text(status.given, style="bold green") if status.contributions else Text("none yet", style="dim")
        rows: list[tuple[str, RenderableType]] = [
            ("batch", batch_bar(status.swarm_samples, status.target_batch_size)),
            ("loss", loss_line(losses, _held_out(status), self._screen.terminal.width - 14)),
            ("swarm", Text(" · ".join(part for part in swarm if part))),
            ("you", Text(" · ".join(mine))),
            ("given", given),
        ]
        grid, terminal = labelled(rows), self._screen.terminal
        of = f" of {status.max_epochs:,}" if status.max_epochs is not None else ""
        title = frame_title(status.run, f"epoch {status.epoch:,}{of}", status.phase, terminal.width)

        def view() -> Panel:
            body: list[RenderableType | None] = [grid]
            if events:
                body += ["", log_lines(events, wrap=True)]
            body.append(step)
            return Panel(
                stacked(body),
                title=title,
                title_align="left",
                subtitle=Text("Ctrl-C leaves", style="dim"),
                subtitle_align="right",
                border_style="dim",
            )

        # On a low or narrow screen the oldest events give way.
        while events and len(terminal.render_lines(view(), pad=False)) >= terminal.height:  # the cursor waits below
            del events[0]
        return view()


def _time_of_day() -> str:
    return datetime.now().strftime("%H:%M:%S")


def _transfer_line(spinner: Spinner, done: int, total: int, *, seconds: float) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=1, min_width=8)
    grid.add_column(no_wrap=True, justify="right")
    speed = f" · {naturalsize(done / seconds)}/s" if seconds >= 1 else ""
    bar = ProgressBar(total=total, completed=min(done, total), complete_style="cyan")
    grid.add_row(spinner, bar, Text(f"{naturalsize(done)} of {naturalsize(total)}{speed}"))
    return grid


def _held_out(status: PeerStatus) -> str:
    measured = status.held_out
    return f"held-out {measured.loss:.3f} at epoch {measured.epoch:,}" if measured is not None else ""


def _pace(status: PeerStatus) -> str:
    pace = status.swarm_samples_per_second
    return f"{rate(pace)} samples/s" if pace is not None else ""


def _plain(status: PeerStatus) -> str:
    parts = [
        f"{status.swarm_samples:,} of {status.target_batch_size:,} samples",
        plural(status.peers, "peer"),
        f"{_pace(status) or '–'} (you {rate(status.my_samples_per_second)})",
        time_left(status.left_s),
    ]
    if status.loss is not None and math.isfinite(status.loss):
        parts.append(f"loss {status.loss:.3f}")
    parts.append(_held_out(status))
    parts.append(printable(status.phase, 24))
    return f"epoch {status.epoch:,}: {', '.join(part for part in parts if part)}; given: {status.given}"
