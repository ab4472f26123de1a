"""How much memory a round takes, measured: whole peers in a process of their own, and what the system says of its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocols.gradients.codecs import CODECS, PIECE_ELEMENTS
from protocols.round.planner import EPOCHS_HELD, WINDOW_BYTES
from tests.peer.round_memory import PEERS

# glibc's malloc keeps freed blocks of up to 32 MiB for later use unless it is told their size: that would be measured, too.
FIXED = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
TEMPORARY_BYTES = 6 * PIECE_ELEMENTS * 4  # of encoding, decoding and averaging, a piece or a chunk at a time


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the largest size of a process is read off /proc")
@pytest.mark.parametrize(("codec", "elements"), [("fp32", 8_000_000), ("int8", 20_000_000)])
def test_a_round_takes_two_encoded_vectors_and_what_a_reducer_holds(codec: str, elements: int, tmp_path: Path) -> None:
    """Of each peer: its contribution, the averages, its own shards of this epoch and the last, and windows of others' chunks.
    With error feedback two more vectors of bfloat16, whatever the codec."""
    command = [sys.executable, "-m", "tests.peer.round_memory", codec, str(elements), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env={**os.environ, **FIXED}, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    vector = found["vector_bytes"]
    shards_each = 2  # as the plan has it for two reducers
    reducing = EPOCHS_HELD * vector / PEERS + shards_each * PEERS * WINDOW_BYTES
    error_feedback = 4 * elements if CODECS[codec].error_feedback else 0
    most = PEERS * (2 * vector + reducing + error_feedback + TEMPORARY_BYTES)
    assert found["grew_bytes"] <= most
    assert found["with_one_more_bytes"] > most, "a third vector of one of the two peers would be seen"
