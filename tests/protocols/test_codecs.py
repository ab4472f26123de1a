from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocols.codecs import CODECS, Codec
from protocols.errors import BadMessageError

FP16_MAX = 65504.0
EVERY = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def vectors(dtype: type[np.floating], limit: float) -> st.SearchStrategy[np.ndarray]:
    bound = float(dtype(limit))
    return arrays(dtype, st.integers(1, 40), elements=st.floats(-bound, bound, width=np.dtype(dtype).itemsize * 8))


@pytest.mark.parametrize(("name", "size"), [("fp64", 8), ("fp32", 4), ("fp16", 2)])
def test_a_value_takes_the_bytes_that_its_name_says(name: str, size: int) -> None:
    assert CODECS[name].encoded_bytes(7) == 7 * size
    assert len(CODECS[name].encode(np.zeros(7, np.float32))) == 7 * size


@given(values=vectors(np.float32, 3e38))
def test_fp32_loses_nothing_of_fp32(values: np.ndarray) -> None:
    codec = CODECS["fp32"]
    assert codec.decode(codec.encode(values)).tobytes() == values.tobytes()


@given(values=vectors(np.float64, 1e300))
def test_fp64_loses_nothing_of_fp64(values: np.ndarray) -> None:
    codec = CODECS["fp64"]
    assert codec.decode(codec.encode(values)).tobytes() == values.tobytes()


@given(values=vectors(np.float32, FP16_MAX))
def test_fp16_is_within_its_stated_error(values: np.ndarray) -> None:
    codec = CODECS["fp16"]
    decoded = codec.decode(codec.encode(values))
    assert decoded.dtype == np.float32
    exact = values.astype(np.float64)
    allowed = np.where(np.abs(exact) >= 2.0**-14, np.abs(exact) * 2.0**-11, 2.0**-25)
    assert bool((np.abs(decoded.astype(np.float64) - exact) <= allowed).all())


@pytest.mark.parametrize("value", [65504.1, 65520.0, 70000.0, 3e38])
def test_fp16_saturates_instead_of_overflowing(value: float) -> None:
    codec = CODECS["fp16"]
    assert codec.decode(codec.encode(np.array([value, -value], np.float32))).tolist() == [FP16_MAX, -FP16_MAX]


@EVERY
@given(data=st.data())
def test_a_shard_of_the_encoding_is_the_encoding_of_the_shard(codec: Codec, data: st.DataObject) -> None:
    """So a contribution is encoded once and sliced by every plan."""
    values = data.draw(vectors(np.float32, 1e5)).astype(codec.working)
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    at, end = codec.encoded_bytes(start), codec.encoded_bytes(stop)
    assert codec.encode(values)[at:end] == codec.encode(values[start:stop])


@EVERY
@given(values=vectors(np.float32, 1e5))
def test_encoding_again_changes_nothing(codec: Codec, values: np.ndarray) -> None:
    encoded = codec.encode(values.astype(codec.working))
    assert codec.encode(values.astype(codec.working)) == encoded
    assert codec.encode(codec.decode(encoded)) == encoded, "what was encoded once loses nothing more"


@EVERY
def test_encoding_neither_needs_contiguous_values_nor_changes_them(codec: Codec) -> None:
    values = np.arange(20, dtype=np.float32) * 1e4
    before = values.copy()
    assert codec.encode(values[::2]) == codec.encode(values[::2].copy())
    assert (values == before).all()


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_value_that_is_not_finite_is_refused(codec: Codec, bad: float, at: int) -> None:
    values = np.ones(7, dtype=codec.working)
    values[at] = bad
    with pytest.raises(BadMessageError, match="finite"):
        codec.decode(codec.encode(values))


@EVERY
def test_infinities_that_cancel_are_refused_without_a_warning(codec: Codec) -> None:
    with pytest.raises(BadMessageError, match="finite"):
        codec.decode(codec.encode(np.array([1, np.inf, -np.inf], dtype=codec.working)))


@EVERY
def test_half_a_value_is_refused(codec: Codec) -> None:
    with pytest.raises(BadMessageError, match="whole number"):
        codec.decode(codec.encode(np.ones(3, np.float32))[:-1])


@EVERY
def test_what_is_decoded_belongs_to_the_caller(codec: Codec) -> None:
    encoded = bytearray(codec.encode(np.ones(3, np.float32)))
    decoded = codec.decode(memoryview(encoded))
    decoded *= 2
    assert codec.decode(encoded).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "expected"), [("fp64", "000000000000f8bf"), ("fp32", "0000c0bf"), ("fp16", "00be")], ids=["fp64", "fp32", "fp16"]
)
def test_bytes_are_little_endian_everywhere(name: str, expected: str) -> None:
    assert CODECS[name].encode(np.array([-1.5], np.float32)).hex() == expected


@EVERY
def test_finite_values_whose_sum_overflows_are_let_through(codec: Codec) -> None:
    largest = np.full(8, torch.finfo(codec.wire).max, codec.working)
    assert codec.decode(codec.encode(largest)).tolist() == largest.tolist()


@EVERY
@pytest.mark.parametrize("elements", [0, 1, 1000])
def test_what_cannot_be_written_to_is_read_without_a_copy_or_a_complaint(codec: Codec, elements: int) -> None:
    values = np.arange(elements, dtype=codec.working)
    encoded = codec.encode(values)
    values.setflags(write=False)
    assert codec.encode(values) == encoded
    for data in (encoded, bytearray(encoded), memoryview(encoded)):
        assert codec.decode(data).tolist() == values.tolist()
