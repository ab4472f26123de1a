"""Two sides of a network that can be parted: a network namespace each, joined by a bridge in a third.

Parting takes a side's port out of the bridge: packets vanish without a word, as on a real network, and no link goes down.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from types import TracebackType

import pytest


class TwoSides:
    """`left` and `right` run a command on a side; `addresses` are those of left and right."""

    addresses = ("10.213.77.1", "10.213.77.2")

    def __init__(self) -> None:
        self._names = [f"dugnad-{os.getpid()}-{part}" for part in ("left", "right", "bridge")]

    @property
    def left(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._names[0])

    @property
    def right(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._names[1])

    def __enter__(self) -> TwoSides:
        if shutil.which("ip") is None:
            pytest.skip("network namespaces need iproute2's ip")
        bridge = self._names[2]
        try:
            for name in self._names:
                _ip("netns", "add", name)
            _ip("-n", bridge, "link", "add", "middle", "type", "bridge")
            _ip("-n", bridge, "link", "set", "middle", "up")
            for side, address, port in zip(self._names, self.addresses, ("port0", "port1"), strict=False):
                _ip("-n", side, "link", "set", "lo", "up")
                _ip("-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "wire", "netns", side)
                _ip("-n", side, "address", "add", f"{address}/24", "dev", "wire")
                _ip("-n", side, "link", "set", "wire", "up")
                _ip("-n", bridge, "link", "set", port, "up")
            self.heal()
        except subprocess.CalledProcessError as error:
            self._remove()
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def part(self) -> None:
        _ip("-n", self._names[2], "link", "set", "port1", "nomaster")

    def heal(self) -> None:
        for port in ("port0", "port1"):
            _ip("-n", self._names[2], "link", "set", port, "master", "middle")

    def _remove(self) -> None:
        for name in self._names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)
