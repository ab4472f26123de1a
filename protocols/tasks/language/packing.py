"""From documents to full sequences of tokens, in a pseudo-random order of each peer's own, prepared ahead in one thread."""

from __future__ import annotations

import hashlib
import queue
import random
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from protocols.tasks.base import Batch, Batches
from protocols.tasks.language.corpus import Document
from protocols.tasks.language.tokenization import tokens_of

_SHUFFLE_TOKENS = 1 << 17
_AHEAD_BATCHES = 4


def seed_of(*parts: object) -> int:
    """A 63-bit seed, the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def training_sequences(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, length: int, separator: int, seed: int
) -> Iterator[list[int]]:
    """Endless sequences of `length` tokens. A document's end is marked by `separator`.

    One pass takes every document once, in random order. A document's sequences would come one after another, all alike, so they
    are drawn from a pool that holds some dozens of documents; the pool is small enough that the first one is there at once.
    """
    draw = random.Random(seed)
    pool: list[list[int]] = []
    pool_size = max(8, _SHUFFLE_TOKENS // length)
    rest: list[int] = []
    while True:
        order = list(range(len(documents)))
        draw.shuffle(order)
        for index in order:
            rest += tokens_of(tokenizer, documents[index].text)
            rest.append(separator)
            whole = len(rest) // length * length
            for start in range(0, whole, length):
                pool.append(rest[start : start + length])
                if len(pool) > pool_size:
                    at = draw.randrange(len(pool))
                    pool[at], pool[-1] = pool[-1], pool[at]
                    yield pool.pop()
            rest = rest[whole:]


def held_out_sequences(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, length: int, separator: int
) -> list[list[int]]:
    """The held-out text as sequences of `length` tokens; what does not fill the last one is left out."""
    tokens: list[int] = []
    for document in documents:
        tokens += tokens_of(tokenizer, document.text)
        tokens.append(separator)
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` indices spread evenly over range(count); all of them when None or when there are fewer."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def as_tensor(sequences: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(sequences, dtype=torch.long)  # (samples, tokens)


class Prefetched(Batches):
    """Makes batches in one background thread, a few ahead. Fault of the maker: raised at the next `next`."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_AHEAD_BATCHES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._prepare, args=(make,), name="batches", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        while True:
            if self._stopping.is_set():
                raise StopIteration
            try:
                item = self._ready.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self.close()
                raise item
            return item

    def close(self) -> None:
        self._stopping.set()
        while True:  # makes room, so that a thread waiting in put sees that it shall stop
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        self._thread.join()

    def _prepare(self, make: Callable[[], Iterator[Batch]]) -> None:
        try:
            for batch in make():
                if not self._put(batch):
                    return
        except BaseException as error:  # noqa: BLE001
            # not lost: the consumer raises it
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
