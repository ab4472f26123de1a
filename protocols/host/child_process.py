"""End child processes with their parent, however the parent dies.

The child's standard input is a pipe. The parent holds its write end and never closes it. The system closes it when the parent is
gone, even after SIGKILL. The child then reads end-of-file and ends itself. Unlike a parent-death signal, this works on every
system and across threads.
"""

from __future__ import annotations

import os
import sys
import threading

PARENT_GONE_EXIT_CODE = 1


def end_with_parent() -> None:
    """End this process at once when its parent dies. Its own children, if they do the same, follow.

    Only for children started with stdin=PIPE.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(PARENT_GONE_EXIT_CODE)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
