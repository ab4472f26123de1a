"""Convert records to protobuf messages and back, field by field, by name.

Messages are bounded. A message that breaks a bound, or a check of the record itself, raises BadMessageError.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from protocols.errors import BadMessageError
from protocols.reasons import Reason
from protocols.round.records import MAX_PEERS
from protocols.wire import dugnad_pb2 as pb

MAX_TEXT = 4096  # characters of a text, bytes of a bytes field
MAX_REPEATED = MAX_PEERS  # items of a repeated field: each may be a record, which takes 10 us to make

T = TypeVar("T")
M = TypeVar("M", bound=Message)


@cache
def _fields(kind: Hashable) -> dict[str, tuple[Any, int, int]]:
    """Field name -> (its type, the most bytes or characters that it may have, the most items)."""
    record = typing.cast(Any, kind)
    hints = typing.get_type_hints(record)
    return {
        field.name: (hints[field.name], field.metadata.get("max_bytes", MAX_TEXT), field.metadata.get("max_items", MAX_REPEATED))
        for field in dataclasses.fields(record)
    }


def to_wire(record: Any) -> Any:
    """A record -> the protobuf message of the same name."""
    fields = {name: _plain(getattr(record, name)) for name in _fields(typing.cast(Hashable, type(record)))}
    return getattr(pb, type(record).__name__)(**fields)


def _plain(value: Any) -> Any:
    """The value of a record's field as a message takes it; None leaves the field out."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Reason):
        return value.value
    return to_wire(value) if dataclasses.is_dataclass(value) else value


def from_wire(kind: type[T], message: Message) -> T:
    """A protobuf message -> the record of class `kind`. Raises BadMessageError if it breaks a bound or a check."""
    try:
        fields = _fields(typing.cast(Hashable, kind))
        return kind(**{name: _value(hint, message, name, *most) for name, (hint, *most) in fields.items()})
    except (ValueError, TypeError, OverflowError) as error:
        raise BadMessageError(f"{kind.__name__}: {error}") from error


def _value(hint: Any, message: Message, name: str, max_bytes: int, max_items: int) -> Any:
    value = getattr(message, name)
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if optional:
        if not message.HasField(name):
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if len(value) > max_items:
            raise BadMessageError(f"{name} has {len(value)} items")
        return tuple(_single(item, element, max_bytes) for element in value)
    if dataclasses.is_dataclass(hint) and not optional and not message.HasField(name):
        raise BadMessageError(f"{name} is missing")
    return _single(hint, value, max_bytes)


def _single(hint: Any, value: Any, max_bytes: int) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_wire(typing.cast(type[Any], hint), value)
    if hint is Reason:
        return Reason(value)
    if isinstance(value, str | bytes) and len(value) > max_bytes:
        raise BadMessageError(f"a text of {len(value)} characters")
    return value


def parsed(kind: type[M], data: bytes) -> M:
    """Wire bytes -> a message of class `kind`. Raises BadMessageError."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise BadMessageError(f"a {kind.__name__} cannot be decoded") from error


def from_bytes(kind: type[T], data: bytes) -> T:
    """Wire bytes -> the record of class `kind`; a signature in it is not checked. Raises BadMessageError."""
    return from_wire(kind, parsed(getattr(pb, kind.__name__), data))


def to_bytes(record: Any) -> bytes:
    """A record -> its one encoding as wire bytes."""
    data: bytes = to_wire(record).SerializeToString(deterministic=True)
    return data
