"""Hosts of a small network on this machine: a network namespace each, joined by a bridge in a namespace of its own.

Needs root and iproute2. Nothing is left behind: leaving the block removes all of it, and a helper process does so if this one
is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from benchmarks.links import Link
from protocols.errors import LocalError

DEVICE = "wire"
MTU_BYTES = 1500
# What tc counts of a full segment, and how much of that TCP carries.
PAYLOAD_SHARE = (MTU_BYTES - 52) / (MTU_BYTES + 14)
# tbf lets this much through at once: one unsegmented send of the kernel, so that it need not be cut; 5 ms at 100 Mbit/s.
BURST_BYTES = 1 << 16
# What waits beyond that is dropped after so long: a home router's buffer, and enough for TCP to fill the link.
QUEUE_S = 0.1
MIN_QUEUE_BYTES = 1 << 18
PROBE_S = 1.0
WORST_SHARE = 0.9  # of what the link must carry
_TC_OVERSHOOT = 1.03


class NamespaceError(LocalError):
    """Namespaces cannot be made or shaped here."""


class Hosts:
    """`count` hosts with addresses of their own; `inside(i)` comes before a command that is to run on host i."""

    device = DEVICE

    def __init__(self, count: int, *, subnet: str = "10.213.78") -> None:
        """Addresses are `subnet`.1 and up. Raises NamespaceError on entry where namespaces cannot be made."""
        prefix = f"dugnad-{os.getpid()}-{subnet.rsplit('.', 1)[1]}"
        self.bridge = f"{prefix}-bridge"
        self.names = [f"{prefix}-{index}" for index in range(count)]
        self.addresses = tuple(f"{subnet}.{index + 1}" for index in range(count))
        self.middle_address = f"{subnet}.254"
        self._janitor: subprocess.Popen[bytes] | None = None

    def inside(self, index: int) -> tuple[str, ...]:
        return _inside(self.names[index])

    def __enter__(self) -> Hosts:
        if shutil.which("ip") is None:
            raise NamespaceError("network namespaces need the command ip", remedy="Install iproute2.")
        self._janitor = _janitor([*self.names, self.bridge])
        try:
            for name in (self.bridge, *self.names):
                _ip("netns", "add", name)
            _ip("-n", self.bridge, "link", "add", "middle", "type", "bridge")
            _ip("-n", self.bridge, "link", "set", "middle", "up")
            _ip("-n", self.bridge, "address", "add", f"{self.middle_address}/24", "dev", "middle")
            for index, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
                port = f"port{index}"
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", self.bridge, "link", "add", port, "type", "veth", "peer", "name", DEVICE, "netns", name)
                _ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
                _ip("-n", name, "link", "set", DEVICE, "up")
                _ip("-n", self.bridge, "link", "set", port, "up")
                self.plug(index)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def plug(self, index: int) -> None:
        _ip("-n", self.bridge, "link", "set", f"port{index}", "master", "middle")

    def unplug(self, index: int) -> None:
        """Packets to and from this host vanish without a word; no link goes down."""
        _ip("-n", self.bridge, "link", "set", f"port{index}", "nomaster")

    def _remove(self) -> None:
        if self._janitor is not None:
            assert self._janitor.stdin is not None
            self._janitor.stdin.close()
            self._janitor.wait()
            self._janitor = None


def _janitor(names: Sequence[str]) -> subprocess.Popen[bytes]:
    """Removes the namespaces when its standard input ends: on our word, or because we are gone."""
    script = 'cat > /dev/null; for name in "$@"; do ip netns delete "$name" 2> /dev/null; done'
    return subprocess.Popen(["sh", "-c", script, "janitor", *names], stdin=subprocess.PIPE, start_new_session=True)


class Shaped(Hosts):
    """Hosts whose lines have the rates of `links`, in both directions."""

    def __init__(self, links: Sequence[Link]) -> None:
        super().__init__(len(links))
        self._channels = links

    def __enter__(self) -> Shaped:
        super().__enter__()
        try:
            for index, link in enumerate(self._channels):
                _shape(self.names[index], DEVICE, link.upload_bytes_s)
                _shape(self.bridge, f"port{index}", link.download_bytes_s)
        except BaseException:
            self._remove()
            raise
        return self

    def verify(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Sends plain TCP over one line of each kind, both ways. Raises NamespaceError when a line is not what it should be."""
        found: dict[str, Any] = {}
        middle = (self.bridge, self.middle_address)  # its own line is not shaped
        for (up_mbit, down_mbit), index in {(link.up_mbit, link.down_mbit): i for i, link in enumerate(self._channels)}.items():
            host = (self.names[index], self.addresses[index])
            up, down = _probe(host, middle), _probe(middle, host)
            may_up, may_down = up_mbit * PAYLOAD_SHARE, down_mbit * PAYLOAD_SHARE
            say(
                f"a line of {up_mbit:g}/{down_mbit:g} Mbit/s carries {up:.1f}/{down:.1f} Mbit/s of plain TCP"
                f" (at most {may_up:.1f}/{may_down:.1f} beside headers)"
            )
            for rate, may in ((up, may_up), (down, may_down)):
                if not WORST_SHARE * may < rate < _TC_OVERSHOOT * may:
                    raise NamespaceError(
                        f"a line that should carry {may:.1f} Mbit/s carries {rate:.1f}",
                        remedy="Something else may keep this machine busy; or its tc shapes differently: nothing was measured.",
                    )
            found[f"{up_mbit:g}/{down_mbit:g}"] = {"tcp_up_mbit": round(up, 2), "tcp_down_mbit": round(down, 2)}
        return found


Host = tuple[str, str]  # namespace, address


def _probe(sender: Host, receiver: Host) -> float:
    """Mbit/s of payload of one TCP stream, without its start. Raises NamespaceError."""
    command = [sys.executable, "-m", "benchmarks.tcp_probe", receiver[1]]
    sink = subprocess.Popen([*_inside(receiver[0]), *command], stdout=subprocess.PIPE)
    try:
        assert sink.stdout is not None
        port = sink.stdout.readline().decode().strip()
        _run(*_inside(sender[0]), *command, port, str(PROBE_S))
        return float(json.loads(sink.stdout.readline()))
    finally:
        sink.kill()
        sink.wait()
        assert sink.stdout is not None
        sink.stdout.close()


def _inside(namespace: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace)


def _shape(namespace: str, device: str, bytes_s: float) -> None:
    limit = int(max(MIN_QUEUE_BYTES, bytes_s * QUEUE_S)) + BURST_BYTES
    rate = f"{int(bytes_s * 8)}bit"
    _run(*_inside(namespace), "tc", "qdisc", "add", "dev", device, "root", "tbf",
         "rate", rate, "burst", str(BURST_BYTES), "limit", str(limit))  # fmt: skip


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except subprocess.CalledProcessError as error:
        raise NamespaceError(
            f"{' '.join(command)}: {error.stderr.strip()}", remedy="Namespaces and tc need root, and a kernel that has them."
        ) from error
