"""Two sides of a network that can be parted: a network namespace each, joined by a bridge in a third.

Parting takes a side's port out of the bridge: packets vanish without a word, as on a real network, and no link goes down.
"""

from __future__ import annotations

from types import TracebackType

import pytest

from benchmarks.namespaces import Hosts, NamespaceError


class TwoSides:
    """`left` and `right` run a command on a side; `addresses` are those of left and right."""

    def __init__(self) -> None:
        self._hosts = Hosts(2, subnet="10.213.77")
        self.addresses = self._hosts.addresses

    @property
    def left(self) -> tuple[str, ...]:
        return self._hosts.inside(0)

    @property
    def right(self) -> tuple[str, ...]:
        return self._hosts.inside(1)

    def __enter__(self) -> TwoSides:
        try:
            self._hosts.__enter__()
        except NamespaceError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hosts.__exit__(kind, error, trace)

    def part(self) -> None:
        self._hosts.unplug(1)

    def heal(self) -> None:
        for index in range(2):
            self._hosts.plug(index)
