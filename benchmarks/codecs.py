"""How fast one core encodes, checks and decodes, and how far off the values come out: python -m benchmarks.codecs [--json]

In chunks of 64 Ki elements, as averages travel. Whoever receives averages checks them as they come; a reducer decodes each chunk
of each contributor. The fastest of `--repeats` goes through the vector counts, since other work on the machine only slows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from protocols.gradients.codecs import CODECS, Codec
from protocols.gradients.shard_average import MAX_CHUNK_ELEMENTS

NAMES = ("fp32", "fp16", "bf16", "int8", "int4")


def fastest(work: Callable[[int], object], chunks: int, repeats: int) -> float:
    """10^9 elements/s of `work`, done for each chunk."""
    best_s = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        for index in range(chunks):
            work(index)
        best_s = min(best_s, time.perf_counter() - began)
    return chunks * MAX_CHUNK_ELEMENTS / best_s / 1e9


def measure(codec: Codec, values: np.ndarray[Any, np.dtype[np.float32]], repeats: int) -> dict[str, float]:
    chunks = len(values) // MAX_CHUNK_ELEMENTS
    cut = [values[at : at + MAX_CHUNK_ELEMENTS] for at in range(0, chunks * MAX_CHUNK_ELEMENTS, MAX_CHUNK_ELEMENTS)]
    encoded = [codec.encode(chunk) for chunk in cut]
    off = np.concatenate([codec.decode(data, MAX_CHUNK_ELEMENTS) for data in encoded]) - np.concatenate(cut)
    return {
        "bytes_per_element": codec.encoded_bytes(MAX_CHUNK_ELEMENTS) / MAX_CHUNK_ELEMENTS,
        "encode": fastest(lambda index: codec.encode(cut[index]), chunks, repeats),
        "check": fastest(lambda index: codec.check(encoded[index], MAX_CHUNK_ELEMENTS), chunks, repeats),
        "decode": fastest(lambda index: codec.decode(encoded[index], MAX_CHUNK_ELEMENTS), chunks, repeats),
        "relative_error": float(np.sqrt((off.astype(np.float64) ** 2).mean() / (values.astype(np.float64) ** 2).mean())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, default=4 << 20)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    values = np.random.default_rng(0).standard_normal(max(asked.params, MAX_CHUNK_ELEMENTS)).astype(np.float32)
    result = {name: measure(CODECS[name], values, asked.repeats) for name in NAMES}
    if asked.json:
        print(json.dumps({"params": asked.params, "chunk_elements": MAX_CHUNK_ELEMENTS, "codecs": result}))
        return
    print("codec  bytes/element   encode    check   decode  (10^9 elements/s)   relative error of normal values")
    for name, row in result.items():
        speeds = "".join(f"{row[what]:9.2f}" for what in ("encode", "check", "decode"))
        print(f"{name:5s} {row['bytes_per_element']:14.4f}{speeds}{row['relative_error']:47.2e}")


if __name__ == "__main__":
    main()
