"""From documents to full sequences of tokens, in a pseudo-random order of each peer's own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerFast

from protocols.tasks.language.corpus import Document
from protocols.tasks.language.tokenization import tokens_of

_SHUFFLE_TOKENS = 1 << 17


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
