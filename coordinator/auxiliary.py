"""The auxiliary peer beside the coordinator: a child process, the same program as any peer, started again when it dies."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from protocols.host.files import keep_short

# Started again at once the first time, then after pauses that double up to this many seconds.
LONGEST_PAUSE_S = 30.0
STABLE_S = 60.0
LOG_BYTES = 8 << 20  # of its output, twice; what matters of it is in its own event log, too


class AuxiliaryPeer:
    """start() it, call restarted() now and then, stop() it. Its output goes to `home`/output.log."""

    def __init__(self, ticket: str, home: Path, *, host: str, announce: str, port: int) -> None:
        self._arguments = [
            *(sys.executable, "-m", "peer", "-", "--role", "auxiliary", "--name", "auxiliary", "--threads", "1", "--yes"),
            *("--home", str(home), "--host", host, "--announce", announce, "--port", str(port), "--end-with-standard-input"),
        ]
        self._ticket = ticket
        self._log = home / "output.log"
        self._start_from = home / "start-from.safetensors"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._pause_s = 0.0
        self._start_at = 0.0

    def start(self, snapshot: Path) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        _share(snapshot, self._start_from)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._arguments, "--start-from", str(self._start_from)],
                stdin=subprocess.PIPE,  # stays open as long as this process lives: see protocols/host/child_process.py
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is the coordinator's to handle
            )
        assert self._process.stdin is not None
        self._process.stdin.write(f"{self._ticket}\n".encode())
        self._process.stdin.flush()
        self._started_at = time.monotonic()

    def restarted(self, snapshot: Path) -> str:
        """Start the child again if it died; says why it died, or '' when there was nothing to do."""
        if self._process is None:
            return ""
        keep_short(self._log, LOG_BYTES)
        code = self._process.poll()
        now = time.monotonic()
        if code is None:
            if now - self._started_at > STABLE_S:
                self._pause_s = 0.0
            return ""
        if self._start_at == 0.0:
            self._start_at = now + self._pause_s
            self._pause_s = min(max(1.0, 2 * self._pause_s), LONGEST_PAUSE_S)
        if now < self._start_at:
            return ""
        self._start_at = 0.0
        self._process.communicate()  # closes the pipe
        self.start(snapshot)
        return f"signal {-code}" if code < 0 else f"exit code {code} (see {self._log})"

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.communicate()  # closes the pipe and waits
        self._process = None


def _share(snapshot: Path, name: Path) -> None:
    """Its own name for the child: the checkpoint may be retired in the seconds before the child reads it."""
    name.unlink(missing_ok=True)
    try:
        name.hardlink_to(snapshot)
    except OSError:  # a file system without links
        shutil.copyfile(snapshot, name)
