"""The live view on a real terminal, beside a shell with job control and somebody who types."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

COLUMNS, ROWS = 40, 24
PROGRAM = """
    import time
    from rich.panel import Panel
    from protocols.host.interrupts import two_stage_interrupts
    from protocols.host.screen import Screen

    left, frames = [], iter(range(10**6))
    def render():
        return Panel(f"frame {next(frames)}", title="view")
    with Screen(render) as screen, two_stage_interrupts(lambda: left.append(1), lambda: None):
        screen.say("a line above")
        while not left:
            time.sleep(0.05)
    print("left")
"""


class Terminal:
    """A shell on a pseudo-terminal, and what a person sees of it."""

    def __init__(self, folder: Path) -> None:
        program = folder / "program.py"
        program.write_text(textwrap.dedent(PROGRAM))
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.environ |= {"PS1": "$ ", "PYTHONPATH": str(Path.cwd()), "TERM": "xterm"}
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.shows("$")
        self.types(f"clear; {sys.executable} {program}\n")

    def types(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def lines(self, seconds: float = 0.0) -> list[str]:
        """What is on the screen after so many seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 or select.select([self._fd], [], [], 0)[0]:
            if select.select([self._fd], [], [], max(0.0, left))[0]:
                self._stream.feed(os.read(self._fd, 1 << 16))
        return [line.rstrip() for line in self._screen.display if line.strip()]

    def shows(self, text: str, limit_s: float = 20.0) -> list[str]:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            lines = self.lines(0.1)
            if any(text in line for line in lines):
                return lines
        raise AssertionError(f"no {text!r} in\n" + "\n".join(self.lines()))

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._fd)[3] & termios.ECHO)

    def close(self) -> None:
        os.kill(self._pid, signal.SIGHUP)
        os.close(self._fd)
        os.waitpid(self._pid, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with contextlib.closing(Terminal(tmp_path)) as terminal:
        yield terminal


def is_whole(lines: list[str]) -> bool:
    """Whether the view is there once, from edge to edge."""
    borders = [line for line in lines if line.startswith(("╭", "╰"))]
    return [line[0] + line[-1] for line in borders] == ["╭╮", "╰╯"]


def test_keys_do_not_tear_the_view_and_ctrl_c_gives_the_terminal_back(terminal: Terminal) -> None:
    terminal.shows("frame 2")
    assert not terminal.echoes
    terminal.types("qwerty")
    lines = terminal.lines(0.6)
    assert is_whole(lines) and not any("qwerty" in line for line in lines), lines
    terminal.types("\x03")
    lines = terminal.shows("left")
    assert is_whole(lines) and "a line above" in lines, lines
    terminal.types("echo back\n")
    terminal.shows("back")
    terminal.lines(0.3)
    assert is_whole(terminal.lines())


def test_ctrl_z_leaves_the_terminal_to_the_shell_and_fg_begins_a_new_view_below(terminal: Terminal) -> None:
    terminal.shows("frame 2")
    terminal.types("\x1a")
    terminal.shows("Stopped")
    terminal.types("echo hel''lo\n")
    before = terminal.shows("hello")
    assert terminal.lines(0.6) == before, "nothing is drawn meanwhile"
    assert is_whole(before)
    terminal.types("fg\n")
    deadline, lines = time.monotonic() + 20, terminal.lines()
    while sum(line.startswith("╰") for line in lines) < 2:
        assert time.monotonic() < deadline, lines
        lines = terminal.lines(0.1)
    assert [line[0] for line in lines if line[0] in "╭╰"] == ["╭", "╰", "╭", "╰"], lines
    written = "".join(lines[lines.index("$ fg") + 1 : -3])
    assert written.endswith("program.py"), f"the shell's line is not drawn over: {lines}"
    terminal.types("\x03")
    terminal.shows("left")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
@pytest.mark.parametrize("columns", [79, 60, 40, 33])
def test_the_view_is_there_once_in_a_window_that_became_narrower(tmp_path: Path, columns: int) -> None:
    """In a terminal that breaks lines which have no room any more, as most do."""
    program, server = tmp_path / "program.py", str(tmp_path / "tmux")
    program.write_text(textwrap.dedent(PROGRAM).replace("title=", "height=9, title="))

    def tmux(*words: str) -> list[str]:
        done = subprocess.run(["tmux", "-f", "/dev/null", "-S", server, *words], capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.strip()]

    def shows(text: str) -> list[str]:
        deadline, lines = time.monotonic() + 20, tmux("capture-pane", "-p")
        while not any(text in line for line in lines):
            assert time.monotonic() < deadline, lines
            time.sleep(0.05)
            lines = tmux("capture-pane", "-p")
        return lines

    bare = ("env", "-u", "COLUMNS", "-u", "LINES", f"PYTHONPATH={Path.cwd()}")
    tmux("new-session", "-d", "-x", "80", "-y", "24", *bare, sys.executable, str(program))
    try:
        shows("frame 2")
        tmux("resize-window", "-x", str(columns))
        lines = shows("╰" + "─" * (columns - 2) + "╯")
        assert is_whole(lines) and lines[:-9] in ([], ["a line above"]), "nothing is left of what was drawn before"
        tmux("send-keys", "C-c")
    finally:
        tmux("kill-server")


def test_a_terminal_that_is_closed_is_as_ctrl_c_and_what_is_said_afterwards_ends_nothing(tmp_path: Path) -> None:
    program, marker = tmp_path / "program.py", tmp_path / "left"
    goes_on = f'screen.say("said to nobody")\nopen({str(marker)!r}, "x")'
    program.write_text(textwrap.dedent(PROGRAM).replace('print("left")', goes_on))
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, str(program)], {**os.environ, "PYTHONPATH": str(Path.cwd()), "TERM": "xterm"})
    seen = b""
    while b"frame 2" not in seen:
        seen += os.read(fd, 1 << 16)
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert marker.exists()
