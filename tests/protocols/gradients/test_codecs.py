from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocols.errors import BadMessageError
from protocols.gradients.codecs import BLOCK, CODECS, MAX_SCALE, MIN_SCALE, PIECE_ELEMENTS, Codec, FloatCodec
from protocols.round.planner import GRID

FP16_MAX = 65504.0
BLOCKED = ("int8", "int4")
# Around the ends of a block, of two, and of the grid, even and odd.
SIZES = st.sampled_from([1, 2, 3, 40, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025])
EVERY = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def vectors(dtype: type[np.floating], limit: float, sizes: st.SearchStrategy[int] = SIZES) -> st.SearchStrategy[np.ndarray]:
    bound = float(dtype(limit))
    elements = st.floats(-bound, bound, width=np.dtype(dtype).itemsize * 8)
    return sizes.flatmap(lambda size: arrays(dtype, size, elements=elements))


def normal(elements: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(elements).astype(np.float32)


def there_and_back(codec: Codec, values: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(values), len(values))


# -- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "most"), [("fp64", 8.0), ("fp32", 4.0), ("fp16", 2.0), ("bf16", 2.0), ("int8", 1.02), ("int4", 0.53)]
)
def test_a_value_takes_the_bytes_that_its_name_says(name: str, most: float) -> None:
    assert CODECS[name].encoded_bytes(1 << 20) <= most * (1 << 20)


@EVERY
@given(elements=st.integers(0, 2000))
def test_an_encoding_is_as_long_as_was_said(codec: Codec, elements: int) -> None:
    assert len(codec.encode(normal(elements))) == codec.encoded_bytes(elements)


@EVERY
@pytest.mark.parametrize("elements", [1, 7, 127, 128, 129, 1024])
def test_more_or_fewer_bytes_than_the_elements_take_are_refused(codec: Codec, elements: int) -> None:
    encoded = codec.encode(normal(elements))
    for data in (encoded[:-1], encoded + b"\0", b""):
        with pytest.raises(BadMessageError, match="bytes are not"):
            codec.decode(data, elements)


@EVERY
@given(data=st.data())
def test_a_shard_of_the_encoding_is_the_encoding_of_the_shard(codec: Codec, data: st.DataObject) -> None:
    """So a contribution is encoded once and sliced by every plan; the last shard may end off the grid."""
    elements = data.draw(st.integers(1, 6 * GRID))
    values = normal(elements, data.draw(st.integers(0, 9)))
    cuts = [*range(0, elements, GRID), elements]
    start, stop = sorted(data.draw(st.tuples(st.sampled_from(cuts), st.sampled_from(cuts))))
    encoded = codec.encode(values)
    at, end = codec.encoded_bytes(start), codec.encoded_bytes(stop)
    assert encoded[at:end] == codec.encode(values[start:stop])
    assert codec.decode(encoded[at:end], stop - start).tolist() == codec.decode(encoded, elements)[start:stop].tolist()


@EVERY
def test_a_vector_of_several_pieces_is_encoded_like_each_of_them(codec: Codec) -> None:
    values = normal(2 * PIECE_ELEMENTS + 77)
    parts = [codec.encode(values[at : at + PIECE_ELEMENTS]) for at in range(0, len(values), PIECE_ELEMENTS)]
    assert codec.encode(values) == b"".join(parts)


# -- errors ----------------------------------------------------------------------------------------------------------------


@given(values=vectors(np.float32, 3e38))
def test_fp32_loses_nothing_of_fp32(values: np.ndarray) -> None:
    assert there_and_back(CODECS["fp32"], values).tobytes() == values.tobytes()


@given(values=vectors(np.float64, 1e300))
def test_fp64_loses_nothing_of_fp64(values: np.ndarray) -> None:
    assert there_and_back(CODECS["fp64"], values).tobytes() == values.tobytes()


@given(values=vectors(np.float32, FP16_MAX))
def test_fp16_is_within_its_stated_error(values: np.ndarray) -> None:
    exact, decoded = values.astype(np.float64), there_and_back(CODECS["fp16"], values).astype(np.float64)
    allowed = np.where(np.abs(exact) >= 2.0**-14, np.abs(exact) * 2.0**-11, 2.0**-25)
    assert bool((np.abs(decoded - exact) <= allowed).all())


@given(values=vectors(np.float32, 3e38))
def test_bf16_is_within_its_stated_error(values: np.ndarray) -> None:
    exact, decoded = values.astype(np.float64), there_and_back(CODECS["bf16"], values).astype(np.float64)
    allowed = np.where(np.abs(exact) >= 2.0**-126, np.abs(exact) * 2.0**-8, 2.0**-134)
    assert bool((np.abs(decoded - exact) <= allowed).all())


@pytest.mark.parametrize(("name", "share"), [("int8", 0.003952), ("int4", 0.07171)])
@pytest.mark.parametrize("limit", [1e-27, 1e-3, 1.0, 1e30])
@given(data=st.data())
def test_blocks_are_within_their_stated_share_of_their_largest_value(
    name: str, share: float, limit: float, data: st.DataObject
) -> None:
    values = data.draw(vectors(np.float32, limit))
    exact, decoded = values.astype(np.float64), there_and_back(CODECS[name], values).astype(np.float64)
    for at in range(0, len(values), BLOCK):
        block = exact[at : at + BLOCK]
        assert np.abs(decoded[at : at + BLOCK] - block).max() <= share * np.abs(block).max() + 128 * MIN_SCALE


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_the_stated_error_is_reached_almost_and_never_passed(codec: Codec, seed: int) -> None:
    print(f"seed {seed}")
    values = (normal(50_000, seed) * 10.0 ** np.random.default_rng(seed).uniform(-6, 4, 50_000)).astype(np.float32)
    error = np.abs(there_and_back(codec, values).astype(np.float64) - values)
    bound = codec.max_error(values)
    assert bool((error <= bound).all())
    assert codec.name in ("fp32", "fp64") or (error / bound).max() > 0.98


@pytest.mark.parametrize("name", BLOCKED)
def test_rounding_does_not_lean_to_one_side(name: str) -> None:
    seed = 3
    print(f"seed {seed}")
    values = normal(1 << 20, seed)
    errors = there_and_back(CODECS[name], values) - values
    assert abs(float(errors.mean())) < 5 * float(errors.std()) / 1024


@EVERY
@given(values=vectors(np.float32, 1e5))
def test_encoding_again_changes_nothing(codec: Codec, values: np.ndarray) -> None:
    encoded = codec.encode(values)
    assert codec.encode(values) == encoded
    assert codec.encode(codec.decode(encoded, len(values))) == encoded, "what was encoded once loses nothing more"


@pytest.mark.parametrize("name", BLOCKED)
@given(values=arrays(np.float32, 3 * BLOCK, elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_a_block_is_fixed_by_one_encoding_whatever_its_size(name: str, values: np.ndarray) -> None:
    codec = CODECS[name]
    encoded = codec.encode(values)
    assert codec.encode(codec.decode(encoded, len(values))) == encoded


@EVERY
@pytest.mark.parametrize("elements", [1, 127, 128, 300])
def test_zeros_stay_zeros(codec: Codec, elements: int) -> None:
    encoded = codec.encode(np.zeros(elements, np.float32))
    assert encoded == bytes(len(encoded))
    assert not codec.decode(encoded, elements).any()


@pytest.mark.parametrize("value", [65504.1, 65520.0, 70000.0, 3e38])
def test_fp16_saturates_instead_of_overflowing(value: float) -> None:
    values = np.array([value, -value], np.float32)
    assert there_and_back(CODECS["fp16"], values).tolist() == [FP16_MAX, -FP16_MAX]


def test_bf16_saturates_instead_of_overflowing() -> None:
    most = float(torch.finfo(torch.bfloat16).max)
    largest = float(np.finfo(np.float32).max)
    assert there_and_back(CODECS["bf16"], np.array([largest, -largest], np.float32)).tolist() == [most, -most]


@pytest.mark.parametrize(("name", "most"), [("int8", 127), ("int4", 7)])
def test_blocks_saturate_instead_of_overflowing_and_spare_their_neighbours(name: str, most: int) -> None:
    values = normal(3 * BLOCK)
    values[BLOCK : BLOCK + 2] = 3e38, -3e38
    decoded = there_and_back(CODECS[name], values)
    assert decoded[BLOCK : BLOCK + 3].tolist() == [most * MAX_SCALE, -most * MAX_SCALE, 0]
    others = np.r_[0:BLOCK, 2 * BLOCK : 3 * BLOCK]
    assert decoded[others].tolist() == there_and_back(CODECS[name], values[others]).tolist()


@pytest.mark.parametrize("name", BLOCKED)
def test_blocks_too_small_for_a_scale_become_zero(name: str) -> None:
    values = np.full(BLOCK, 2.0**-101, np.float32)
    assert not there_and_back(CODECS[name], values).any()


# -- what is refused --------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 3, 127, 128, 130])
def test_a_value_that_is_not_finite_is_refused(codec: Codec, bad: float, at: int) -> None:
    values = normal(131)
    values[at] = bad
    encoded = codec.encode(values)
    assert encoded == codec.encode(values)
    with pytest.raises(BadMessageError, match="finite"):
        codec.decode(encoded, len(values))
    with pytest.raises(BadMessageError, match="finite"):
        codec.check(encoded, len(values))


@EVERY
def test_infinities_that_cancel_are_refused_without_a_warning(codec: Codec) -> None:
    with pytest.raises(BadMessageError, match="finite"):
        there_and_back(codec, np.array([1, np.inf, -np.inf], np.float32))


@EVERY
def test_finite_values_whose_sum_overflows_are_let_through(codec: Codec) -> None:
    if isinstance(codec, FloatCodec):
        largest = np.full(8, torch.finfo(codec.wire).max, codec.working)
        assert there_and_back(codec, largest).tolist() == largest.tolist()


def block(scale: float, name: str = "int8", fill: int = 1) -> bytes:
    bits = int(np.float32(scale).view(np.uint32)) >> 16
    codec = CODECS[name]
    return bits.to_bytes(2, "little") + bytes([fill]) * (codec.encoded_bytes(BLOCK) - 2)


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize(
    "scale",
    [np.nan, np.inf, -np.inf, -1.0, -0.0, 0.0, 1e-40, 2.0**-101, -(2.0**-100), 2.0**101, 3e38],
    ids=lambda scale: f"{scale:.3g}",
)
def test_a_scale_that_no_encoding_has_is_refused(name: str, scale: float) -> None:
    codec = CODECS[name]
    good = block(1.0, name)
    codec.check(good, BLOCK)
    for data in (block(scale, name) + good, good + block(scale, name)):
        with pytest.raises(BadMessageError, match="not encoded"):
            codec.check(data, 2 * BLOCK)


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100])
def test_every_number_under_a_sound_scale_has_a_finite_value(scale: float) -> None:
    eights = np.arange(-128, 128, dtype=np.int8)
    data = block(scale)[:2] + eights[:128].tobytes() + block(scale)[:2] + eights[128:].tobytes()
    assert CODECS["int8"].decode(data, 256).tolist() == [number * scale for number in range(-128, 128)]
    pairs = bytes(low | (low ^ 8) << 4 for low in range(16)) * 4
    four = CODECS["int4"].decode(block(scale, "int4")[:2] + pairs, 128).tolist()
    signed = [low - 16 if low > 7 else low for low in range(16)]
    assert four == [number * scale for number in [*signed * 4, *(signed[8:] + signed[:8]) * 4]]


def test_bits_behind_an_odd_number_of_values_are_refused() -> None:
    codec = CODECS["int4"]
    encoded = bytearray(codec.encode(normal(BLOCK + 5)))
    codec.check(encoded, BLOCK + 5)
    encoded[-1] |= 0x10
    with pytest.raises(BadMessageError, match="not encoded"):
        codec.check(encoded, BLOCK + 5)


@EVERY
@given(data=st.data())
def test_garbage_is_refused_or_is_some_finite_vector(codec: Codec, data: st.DataObject) -> None:
    elements = data.draw(st.sampled_from([0, 1, 5, 128, 129, 260]))
    size = codec.encoded_bytes(elements)
    garbage = bytearray(np.random.default_rng(data.draw(st.integers(0, 2**32))).bytes(size))
    if data.draw(st.booleans()):  # otherwise hardly ever a sound scale
        for at in range(0, size, codec.encoded_bytes(BLOCK)):
            garbage[at : at + 2] = data.draw(st.binary(min_size=2, max_size=2))
    if data.draw(st.booleans()):
        garbage = garbage[: data.draw(st.integers(0, size))]
    with contextlib.suppress(BadMessageError):
        decoded = codec.decode(bytes(garbage), elements)
        assert len(decoded) == elements
        assert bool(np.isfinite(decoded).all())
        assert codec.encode(decoded) is not None


@EVERY
def test_results_do_not_depend_on_the_number_of_threads(codec: Codec) -> None:
    values, threads = normal(300_001), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(codec.encode(there_and_back(codec, values) / 3))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


# -- memory ----------------------------------------------------------------------------------------------------------------


@EVERY
def test_encoding_neither_needs_contiguous_values_nor_changes_them(codec: Codec) -> None:
    values = np.arange(600, dtype=np.float32) * 1e2
    before = values.copy()
    for step in (2, -1, -3):
        assert codec.encode(values[::step]) == codec.encode(values[::step].copy())
    assert (values == before).all()


@EVERY
def test_what_is_decoded_belongs_to_the_caller(codec: Codec) -> None:
    encoded = bytearray(codec.encode(np.ones(3, np.float32)))
    first = codec.decode(memoryview(encoded), 3)
    before = first.tolist()
    first *= 2
    assert codec.decode(encoded, 3).tolist() == before


@EVERY
@pytest.mark.parametrize("elements", [0, 1, 1000])
def test_what_cannot_be_written_to_is_read_without_a_copy_or_a_complaint(codec: Codec, elements: int) -> None:
    values = np.arange(elements, dtype=codec.working)
    encoded = codec.encode(values)
    values.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codec.encode(values) == encoded
        decoded = [codec.decode(data, elements).tolist() for data in (encoded, bytearray(encoded), memoryview(encoded))]
    assert decoded[0] == decoded[1] == decoded[2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp64", "000000000000f8bf 0000000000000840"),
        ("fp32", "0000c0bf 00004040"),
        ("fp16", "00be 0042"),
        ("bf16", "c0bf 4040"),
        ("int8", "c23c c1 7f"),  # 3/127 in bfloat16 is 0x3cc2; -1.5 is -63 times that, 3 is 127 times
        ("int4", "db3e 7c"),  # 3/7 is 0x3edb, a little less; -1.5 is -4 times that, 3 is 7 times
    ],
)
def test_bytes_are_the_same_everywhere(name: str, expected: str) -> None:
    codec = CODECS[name]
    assert codec.encode(np.array([-1.5, 3.0], np.float32)).hex() == expected.replace(" ", "")
