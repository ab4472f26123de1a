"""End child processes with their parent, however the parent dies.

The child's standard input is a pipe. The parent holds its write end and never closes it. The system closes it when the parent is
gone, even after SIGKILL. The child then reads end-of-file and ends itself. Unlike a parent-death signal, this works on every
system and across threads.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

PARENT_GONE_EXIT_CODE = 1


def when_parent_dies(act: Callable[[], None]) -> None:
    """Call `act`, in a thread, once the parent is gone. Only for children started with stdin=PIPE."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        act()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_with_parent() -> None:
    """End this process at once when its parent dies. Its own children, if they do the same, follow."""
    when_parent_dies(lambda: os._exit(PARENT_GONE_EXIT_CODE))


def kill_quietly(pid: int) -> None:
    """Kill a process with SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
