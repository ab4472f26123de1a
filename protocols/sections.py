"""Section: one table of a run file. From what pydantic found wrong in it to one sentence that a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from protocols.errors import SpecError


class Section(BaseModel):
    """A table of a run file: typed strictly, frozen, and without keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    not_in_files: ClassVar[frozenset[str]] = frozenset()
    """Keys that an author leaves out, so that no error proposes them."""


MAX_LEVELS = 16
"""A dotted key of thousands of parts is short in a file, and too deep for whatever walks through it."""

Tables = dict[str, frozenset[str]]
"""The keys that each table knows, by the table's dotted name; "" is the file itself."""


def tables_of(section: type[Section], name: str = "") -> Tables:
    """The tables of a section and of all sections inside it."""
    tables = {name: frozenset(section.model_fields) - section.not_in_files}
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            tables |= tables_of(field.annotation, _dotted(name, key))
    return tables


def check_json(value: Any, key: str, levels: int = MAX_LEVELS) -> None:
    """Raises ValueError unless TOML and JSON can both hold the value, at most `levels` tables or lists inside each other."""
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        if levels == 0:
            raise ValueError(f"{key[:100]} is nested too deeply")
        items = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
        for name, item in items:
            check_json(item, key if name is None else f"{key}.{name}", levels - 1)
    elif not isinstance(value, str | int | float | bool) or value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{key} must be a number, a string, true or false, or a list or table of these")


def spec_error(error: ValidationError, tables: Tables, within: str = "") -> SpecError:
    """The first fault only: one line that a person can act on is worth more than a list.

    `within` is the dotted name of the table that was validated.
    """
    faults = error.errors(include_url=False, include_context=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    where = [*([within] if within else []), *(str(part) for part in fault["loc"] if part != "[key]")]
    dotted = ".".join(where)
    if fault["type"] == "extra_forbidden":
        return _unknown_key(".".join(where[:-1]), where[-1], fault["input"], tables)
    if fault["type"] == "missing":
        return SpecError(f"{dotted} is missing", remedy=f"Add {dotted}.")
    if fault["type"] == "string_pattern_mismatch" and dotted == "run.name":
        return SpecError(
            f"run.name is {fault['input']!r}", remedy="Use 1 to 63 lower-case letters, digits and dashes, starting with no dash."
        )
    if fault["type"] == "value_error":
        message = fault["msg"].removeprefix("Value error, ")
        return SpecError(f"{dotted}: {message}" if dotted else message, remedy="Change that in the run file.")
    if fault["type"] == "literal_error":
        return unknown_name(dotted, fault["input"], re.findall(r"'([^']+)'", fault["msg"]))
    return SpecError(f"{dotted} is {_shown(fault['input'])}", remedy=f"{fault['msg'].replace('Input should', 'It should')}.")


def unknown_name(dotted: str, given: object, names: Iterable[str]) -> SpecError:
    """For the key `dotted`, whose value is none of `names`: an error that proposes the nearest one."""
    valid = sorted(names)
    near = difflib.get_close_matches(str(given), valid, n=1, cutoff=0.5)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return SpecError(f"{dotted} is {_shown(given)}", remedy=f"It should be {' or '.join(valid)}.{hint}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_key(table: str, key: str, value: Any, tables: Tables) -> SpecError:
    dotted = _dotted(table, key)
    valid = tables.get(table, frozenset())
    near = difflib.get_close_matches(key, sorted(valid), n=1)
    everywhere = {name: _dotted(other, name) for other, names in tables.items() if other for name in sorted(names)}
    if near and key not in everywhere:
        return SpecError(f"unknown key {dotted}", remedy=f"Did you mean {_dotted(table, near[0])}?")
    near = difflib.get_close_matches(key, everywhere, n=1)
    if near and not isinstance(value, Mapping):
        return SpecError(f"unknown key {dotted}", remedy=f"Did you mean {everywhere[near[0]]}?")
    remedy = f"Valid here: {', '.join(sorted(valid))}."
    if not table.startswith("task"):
        remedy += " What only the task knows stands below [task], such as [task.model]."
    return SpecError(f"unknown key {dotted}", remedy=remedy)


def _dotted(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key
