"""Every decoder of bytes from outside, fed with damaged and made-up input: only the errors that callers expect come out.

make fuzz        a million inputs, from a random seed that is printed
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from protocols.errors import BadMessageError, DugnadError, TicketError
from protocols.identity import Authority, Key, Ticket, verify_signature
from protocols.run_spec import RunSpec
from protocols.snapshot.format import StateHeader, capture, read_header, read_parameters
from protocols.transport.announcements import Announcement, read_announcement, sign_announcement
from protocols.transport.frames import Kind
from protocols.wire.convert import from_bytes, to_bytes
from tests import factories
from tests.protocols.test_wire import EVERY_RECORD

INPUTS = int(os.environ.get("DUGNAD_FUZZ_INPUTS", "20000"))
SEED = int(os.environ.get("DUGNAD_FUZZ_SEED", "12"))
SLOWEST_S, LARGEST_BYTES = 1.0, 64 << 20


def samples_of(kind: type[Any], count: int = 8) -> list[bytes]:
    found: list[bytes] = []

    @settings(
        max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(EVERY_RECORD[kind])
    def draw(record: Any) -> None:
        found.append(to_bytes(record))

    draw()
    return found


def damaged(draw: Random, data: bytes) -> bytes:
    """`data` with some bytes changed, cut, doubled or put in."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0 if changed:
                changed[at % len(changed)] = draw.randrange(256)
            case 1 if changed:
                changed[at % len(changed)] ^= 1 << draw.randrange(8)
            case 2:
                del changed[at : at + draw.randrange(1, 9)]
            case 3:
                changed[at:at] = draw.randbytes(draw.randrange(1, 9))
            case 4:
                changed[at:at] = changed[at : at + draw.randrange(1, 33)]
            case _:
                changed[at : at + 9] = b"\xff" * draw.randrange(1, 10)
    return bytes(changed)


def snapshot() -> bytes:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return capture(model, optimizer, StateHeader("ab" * 32, 0, "cd" * 32, 0, "", {}))


def decoders(authority: Authority) -> dict[str, tuple[Callable[[bytes], Any], list[bytes], type[Exception]]]:
    """Name -> (decoder, true inputs, the error that callers expect)."""
    mine = factories.admitted(authority)
    announced = sign_announcement(Announcement(mine.peer_id, 1, "a:1", "name", False, (NODE_ADDRESS,)), mine)
    signature = mine.key.sign(b"text")
    found: dict[str, tuple[Callable[[bytes], Any], list[bytes], type[Exception]]] = {
        f"record {kind.__name__}": (lambda data, kind=kind: from_bytes(kind, data), samples_of(kind), BadMessageError)
        for kind in EVERY_RECORD
    }
    found |= {
        "announcement": (lambda data: read_announcement(data, authority.pem), [announced], BadMessageError),
        "certificate": (
            lambda data: verify_signature(b"text", signature, data, authority.pem),
            [mine.certificate, authority.pem],
            BadMessageError,
        ),
        "signature": (
            lambda data: verify_signature(b"text", data, mine.certificate, authority.pem),
            [signature],
            BadMessageError,
        ),
        "certificate request": (authority.admit, [Key.generate().request()], BadMessageError),
        "snapshot header": (read_header, [snapshot()], BadMessageError),
        "snapshot parameters": (read_parameters, [snapshot()], BadMessageError),
        "run spec": (lambda data: RunSpec.from_toml(data.decode(errors="replace")), [SPEC.encode()], DugnadError),
        "ticket": (lambda data: Ticket.parse(data.decode(errors="replace")), [str(TICKET).encode()], TicketError),
    }
    return found


NODE_ADDRESS = "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
SPEC = factories.run_spec().to_toml()
TICKET = Ticket(("127.0.0.1", "example.org"), 4000, bytes(range(32)), bytes(16))


@pytest.mark.timeout(7200)
def test_no_input_gets_more_out_of_a_decoder_than_its_error_in_bounded_time_and_memory(authority: Authority) -> None:
    print(f"seed {SEED}")
    draw, them = Random(SEED), decoders(authority)
    each = max(1, INPUTS // len(them))
    for name, (decode, true, expected) in them.items():
        for sample in true:
            decode_or(expected, decode, sample)
        tracemalloc.start()
        slowest = 0.0
        for number in range(each):
            data = damaged(draw, draw.choice(true)) if number % 10 else draw.randbytes(draw.randrange(200))
            began = time.perf_counter()
            decode_or(expected, decode, data, name)
            slowest = max(slowest, time.perf_counter() - began)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert slowest < SLOWEST_S and peak < LARGEST_BYTES, (name, slowest, peak)


def decode_or(expected: type[Exception], decode: Callable[[bytes], Any], data: bytes, name: str = "") -> None:
    try:
        decode(data)
    except expected:
        pass
    except Exception as error:
        raise AssertionError(f"{name}: {data.hex()} gives {type(error).__name__}: {error}") from error


def test_every_kind_of_frame_is_known() -> None:
    assert {int(kind) for kind in Kind} == set(range(1, len(Kind) + 1))
