"""A router that forwards ports by UPnP, through miniupnpc. That library blocks, so each call has a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import random
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from protocols.errors import RouterError

DESCRIPTION = "dugnad"
_FIRST_FREE_PORT, _PORTS_TRIED = 1 << 15, 4
_TAKEN = ("ConflictInMappingEntry", "ConflictWithOtherMechanisms")
_ONLY_FOR_EVER = "OnlyPermanentLeasesSupported"
T = TypeVar("T")


class Upnp:
    """The router that miniupnpc finds on the network of `own`, this machine's address. A port_mapping.Gateway after `find`."""

    by = "UPnP"

    def __init__(self, own: str) -> None:
        self._own = own
        self._device: Any = None
        self._lock = threading.Lock()  # miniupnpc's object is for one thread at a time; a call that nobody waits for still runs

    async def find(self) -> None:
        """Takes 4 s where none answers, and about 1 s where one does. Raises RouterError, also without miniupnpc."""
        try:
            import miniupnpc  # a C extension, with wheels for Linux only
        except ImportError as error:
            raise RouterError("miniupnpc, which speaks UPnP, is not installed") from error
        self._device = miniupnpc.UPnP(multicastif=self._own)  # it keeps a bare pointer to that text
        await self._do(self._search)

    def _search(self) -> None:
        self._device.discover()
        self._device.selectigd()

    async def address(self) -> str:
        return str(await self._do(self._device.externalipaddress))

    async def forward(self, port: int, wished: int, lease_s: int) -> int:
        for outside in (wished, *random.sample(range(_FIRST_FREE_PORT, 1 << 16), _PORTS_TRIED - 1)):
            try:
                await self._add(port, outside, lease_s)
            except RouterError as error:
                if str(error.__cause__) not in _TAKEN:
                    raise
            else:
                return outside
        raise RouterError(f"the router forwards nothing by UPnP: {_PORTS_TRIED} ports were taken")

    async def _add(self, port: int, outside: int, lease_s: int) -> None:
        add = functools.partial(self._device.addportmapping, outside, "TCP", self._own, port, DESCRIPTION, "")
        try:
            await self._do(functools.partial(add, lease_s))
        except RouterError as error:
            if str(error.__cause__) != _ONLY_FOR_EVER:
                raise
            await self._do(functools.partial(add, 0))

    async def forget(self, port: int, outside: int) -> None:
        await self._do(functools.partial(self._device.deleteportmapping, outside, "TCP"))

    async def _do(self, call: Callable[[], T]) -> T:
        """On a thread that nobody waits for at the end: a search would hold up a peer that leaves."""
        result: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            with self._lock:
                try:
                    result.set_result(call())
                except Exception as error:  # noqa: BLE001  miniupnpc raises nothing more exact
                    result.set_exception(error)

        threading.Thread(target=run, name="upnp", daemon=True).start()
        returned = asyncio.wrap_future(result)
        returned.add_done_callback(lambda it: it.cancelled() or it.exception())  # perhaps nobody waits for it any more
        try:
            return await asyncio.shield(returned)
        except Exception as error:
            raise RouterError(f"the router forwards nothing by UPnP: {error}") from error
