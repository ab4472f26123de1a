"""One live view on stderr, or plain lines if stderr is no terminal. It shares the terminal with a shell, and with keys typed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rich.console import Console as Terminal
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment, SegmentLines
from rich.text import Text

if sys.platform != "win32":
    import termios

REFRESHES_PER_SECOND = 4
LOOK_S = 0.3  # whether the shell has given the terminal back


class Screen:
    """Draws `render()` four times a second on its own thread, from entry to exit. If stderr is no terminal, it only prints lines.

    Enter it after the last fork: the thread may hold a lock at the instant of a fork. On the main thread, Ctrl-Z gives the
    terminal to the shell, and `fg` begins a new view below what the shell has written.
    """

    def __init__(self, render: Callable[[], RenderableType], terminal: Terminal | None = None) -> None:
        self.terminal = terminal or Terminal(stderr=True, highlight=False, force_terminal=sys.stderr.isatty())
        # A dumb terminal cannot move its cursor up, so a live view would scroll for ever.
        self.is_live = self.terminal.is_terminal and not self.terminal.is_dumb_terminal
        self._render = render
        self._live: _View | None = None
        self._keys = _Keys()
        self._entered = False
        self._before: Any = None  # the handler of Ctrl-Z

    def say(self, line: str | Text) -> None:
        """Print a line that stays: above the live view, if there is one."""
        text = Text(line) if isinstance(line, str) else line
        live = self._live
        # A long line is not broken, so that grep finds it and a ticket can be copied in one piece.
        with _unless_closed(), live.above() if live is not None else contextlib.nullcontext():
            self.terminal.print(text, soft_wrap=True)

    def __enter__(self) -> Screen:
        if self.is_live:
            self._entered = True
            self._begin()
            if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
                self._before = signal.signal(signal.SIGTSTP, self._suspend)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        if sys.platform != "win32" and self._before is not None:
            signal.signal(signal.SIGTSTP, self._before)
            self._before = None
        self._end()

    def _begin(self) -> None:
        self._keys.hide()
        # Take over standard output only if it is a terminal. Else another program reads it.
        self._live = _View(
            self._render,
            console=self.terminal,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
            vertical_overflow="crop",
        )
        self._live.start(refresh=False)

    def _end(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with _unless_closed():
                live.stop()
        self._keys.show()

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        """On a thread of its own: the interrupted one may hold a lock that drawing needs."""
        threading.Thread(target=self._stand_still, daemon=True).start()

    def _stand_still(self) -> None:
        self._end()
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(LOOK_S)  # the signal may take a moment; from then on this thread stands still as well
        while not _in_foreground():
            time.sleep(LOOK_S)
        if self._entered:
            self._begin()


class _Frame:
    """What is drawn, and the cells of each row that were drawn last."""

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self._render = render
        self._row_cells: list[int] = []

    def __rich_console__(self, console: Terminal, options: ConsoleOptions) -> RenderResult:
        rows = console.render_lines(self._render(), options, pad=False)
        self._row_cells = [Segment.get_line_length(row) for row in rows[: options.size.height]]
        yield SegmentLines(rows, new_lines=True)

    def broken_rows(self, columns: int) -> int:
        """By how many rows the frame has grown in a window that now has so many columns: most terminals go on in the next row
        with what has no room any more."""
        return sum(max(cells - 1, 0) // columns for cells in self._row_cells)


class _View(Live):
    """Finds its last frame again in a window that became narrower. No line is written above while a frame is being drawn."""

    def __init__(self, render: Callable[[], RenderableType], **options: Any) -> None:
        self._frame = _Frame(render)
        super().__init__(get_renderable=lambda: self._frame, **options)

    def refresh(self) -> None:
        with _unless_closed(), self._lock, self.console:
            up_a_row = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
            self.console.control(Control(*up_a_row * self._frame.broken_rows(self.console.width)))
            super().refresh()

    @contextlib.contextmanager
    def above(self) -> Iterator[None]:
        """To print there."""
        with self._lock:
            self.refresh()
            yield


class _Keys:
    """Whether the terminal writes what is typed, such as ^C: into the live view that would tear it."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def hide(self) -> None:
        if sys.platform != "win32" and sys.stdin.isatty() and _in_foreground():
            with contextlib.suppress(termios.error):
                self._before = termios.tcgetattr(sys.stdin)
                quiet = termios.tcgetattr(sys.stdin)
                quiet[3] &= ~termios.ECHO
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)

    def show(self) -> None:
        before, self._before = self._before, None
        if sys.platform != "win32" and before is not None and _in_foreground():
            with contextlib.suppress(termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _unless_closed() -> Iterator[None]:
    """What is written within is lost if the terminal is closed, since nobody reads it: this process may have to go on."""
    with contextlib.suppress(OSError):
        yield


def _in_foreground() -> bool:
    """Whether the terminal, if there is one, is this process's to draw on."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return True
