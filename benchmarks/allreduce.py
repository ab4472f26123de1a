"""How fast peers average a vector, beside hivemind and gloo: python -m benchmarks.allreduce [--links 100/100x4] [--json]

Every peer is a process of its own, for each engine. The engines take turns, round by round, while the processes of the others
idle; every round's averages are compared with the exact mean. dugnad's rounds are its production path: mutual TLS, a planner's
plan, encoding, digests, finiteness, drift control, decoding. hivemind's matchmaking is over before the clock starts; gloo
encrypts nothing and always averages fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmarks import tables
from benchmarks.bound import bound, encoded_bytes, equal_fractions, seconds
from benchmarks.crew import Crew, CrewError
from benchmarks.links import Link
from benchmarks.splits import SPLITS
from benchmarks.stage import Stage, add_peers, links_of, parser_of
from benchmarks.vectors import write_noise
from protocols.host.screen import Screen

ENGINES = ("dugnad", "hivemind", "gloo")
CODECS = ("fp32", "fp16", "bf16", "int8", "int4")
# A round that did not average everybody is repeated, but not for ever.
TRIES = 6
ROUND_LIMIT_S = 1200.0
BUSY = 0.8  # of all cores: then these set the pace, not the links


@dataclass(frozen=True)
class Options:
    links: tuple[Link, ...]
    shaped: bool
    params: int
    codec: str
    engines: tuple[str, ...]
    rounds: int
    split: str

    def codec_of(self, engine: str) -> str:
        """gloo knows fp32 only; hivemind's answer to a smaller codec is its fp16."""
        if engine == "dugnad" or self.codec == "fp32":
            return self.codec
        return "fp16" if engine == "hivemind" else "fp32"


@dataclass
class Measured:
    """One engine's rounds; `partial`: those that did not average everybody, and were not counted."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # of all peers together
    peak_bytes: int = 0  # of the peer that needed most
    partial: list[str] = field(default_factory=list)
    excess: float = 0.0
    gave_up: bool = False

    def summary(self, options: Options, engine: str) -> dict[str, Any]:
        if not self.seconds:
            return {"codec": options.codec_of(engine), "median_s": None, "seconds": [], "partial_rounds": self.partial}
        median = statistics.median(self.seconds)
        vector_bytes = 4 * options.params
        encoded = encoded_bytes(options.codec_of(engine), options.params)
        peers, cpu_s = len(options.links), statistics.median(self.cpu_s)
        found: dict[str, Any] = {
            "codec": options.codec_of(engine),
            "median_s": round(median, 4),
            "seconds": [round(value, 4) for value in self.seconds],
            "mb_per_s": round(vector_bytes / 1e6 / median, 1),
            "cpu_s_per_gb": round(cpu_s / peers / (vector_bytes / 1e9), 2),
            "peak_memory_mb": round(self.peak_bytes / 1e6, 1),
            "peak_memory_vectors": round(self.peak_bytes / vector_bytes, 2),
            "cores_busy": round(cpu_s / median, 2),
            "of_allowed_error": round(self.excess, 3),
            "partial_rounds": self.partial,
        }
        if options.shaped:
            found["bound_s"] = round(bound(encoded, options.links), 3)
            found["equal_bound_s"] = round(seconds(encoded, options.links, equal_fractions(options.links)), 3)
            found["ratio_bound"] = round(median / bound(encoded, options.links), 3)
        return found


def measure(options: Options, crews: Sequence[Crew], screen: Screen, measured: dict[str, Measured]) -> None:
    for crew in crews:
        screen.say(f"starting {len(crew.setups)} processes of {crew.engine}")
        crew.meet()
    turn = 0
    for number in range(options.rounds + 1):  # the first opens connections, and is not counted
        shift = number % len(crews)
        for crew in (*crews[shift:], *crews[:shift]):
            engine = crew.engine
            if measured[engine].gave_up:
                continue
            for _ in range(TRIES):
                turn += 1
                took = one_round(options, crew, turn, measured[engine], warm_up=number == 0)
                if took is not None:
                    break
                screen.say(f"{engine}: {measured[engine].partial[-1]}; that round is repeated")
            else:
                screen.say(f"{engine}: {TRIES} rounds in a row did not average everybody; it is left out from now on")
                measured[engine].gave_up = True
                continue
            which = f"round {number} of {options.rounds}" if number else "warming up"
            screen.say(f"{which}: {engine:9} {took:8.3f} s")


def one_round(options: Options, crew: Crew, turn: int, measured: Measured, *, warm_up: bool) -> float | None:
    """Seconds from the first to begin to the last to end; None when not everybody was averaged. Raises CrewError."""
    crew.all("prepare", turn)
    if not all(crew.all("prepared")):
        crew.all("check", turn, options.codec_of(crew.engine))
        measured.partial.append(f"the group was not complete{crew.complaint}")
        return None
    if warm_up:
        crew.all("settle")
    runs = crew.all("run", limit_s=ROUND_LIMIT_S)
    checks = crew.all("check", turn, options.codec_of(crew.engine))
    problem = next((run["problem"] for run in runs if run["problem"]), "")
    excess = max(check["excess"] for check in checks)
    if not problem and excess > 1:
        problem = f"the averages are off the exact mean, {excess:.3g} times what rounding allows"
    if problem:
        if crew.engine != "hivemind":  # it alone goes on when a part is missing
            raise CrewError(f"{crew.engine}: {problem}")
        measured.partial.append(f"{problem}{crew.complaint}")
        return None
    took: float = max(run["ended"] for run in runs) - min(run["began"] for run in runs)
    measured.peak_bytes = max(measured.peak_bytes, *(check["peak_bytes"] for check in checks))
    if not warm_up:
        measured.seconds.append(took)
        measured.cpu_s.append(sum(check["cpu_s"] for check in checks))
        measured.excess = max(measured.excess, excess)
    return took


def benchmark(options: Options) -> dict[str, Any]:
    measured = {engine: Measured() for engine in options.engines}
    screen = Screen(lambda: drawn(options, measured))
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(Stage(options.links, screen.say))
        write_noise(stage.folder / "noise", options.params)
        crews = []
        for engine in options.engines:
            codec = options.codec_of(engine)
            setups = stage.setups(options.params, codec, options.split)
            crews.append(stack.enter_context(Crew(engine, setups, stage.under)))
        with screen:
            measure(options, crews, screen, measured)
        return report(options, measured, stage.network)


def report(options: Options, measured: dict[str, Measured], network: dict[str, Any]) -> dict[str, Any]:
    engines = {engine: it.summary(options, engine) for engine, it in measured.items()}
    result: dict[str, Any] = {
        "benchmark": "allreduce",
        "peers": len(options.links),
        "params": options.params,
        "codec": options.codec,
        "split": options.split,
        "rounds": options.rounds,
        "engines": engines,
    }
    ours = engines.get("dugnad", {}).get("median_s")
    for other in ("hivemind", "gloo"):
        if ours and other in engines:
            theirs = engines[other]["median_s"]
            result[f"ratio_{other}"] = round(theirs / ours, 3) if theirs else None  # None: it averaged nothing
    if options.shaped:
        first = engines.get("dugnad") or next(iter(engines.values()))
        result |= {key: first.get(key) for key in ("bound_s", "equal_bound_s", "ratio_bound")} | {"network": network}
    cores = os.cpu_count() or 1
    result["warnings"] = [
        f"{engine} kept {it['cores_busy']:.1f} of {cores} cores busy: the processor, not the links, sets its pace"
        for engine, it in engines.items()
        if options.shaped and it.get("cores_busy", 0) > BUSY * cores
    ]
    return {**result, "machine": tables.machine()}


def drawn(options: Options, measured: dict[str, Measured]) -> Table:
    columns = ["engine", "codec", "rounds", "median s", "MB/s a peer", "CPU s/GB", "peak MB", "cores busy"]
    columns += ["bound s", "of bound"] if options.shaped else []
    rows = []
    for engine, it in measured.items():
        if not it.seconds:
            rows.append([engine, options.codec_of(engine), "0", *["–"] * (len(columns) - 3)])
            continue
        found = it.summary(options, engine)
        row = [engine, found["codec"], str(len(it.seconds)), f"{found['median_s']:.3f}", f"{found['mb_per_s']:.0f}"]
        row += [f"{found['cpu_s_per_gb']:.1f}", f"{found['peak_memory_mb']:.0f}", f"{found['cores_busy']:.1f}"]
        row += [f"{found['bound_s']:.2f}", f"{found['ratio_bound']:.3f}"] if options.shaped else []
        rows.append(row)
    return tables.table(f"{len(options.links)} peers, {options.params:,} parameters", columns, rows)


def parser() -> argparse.ArgumentParser:
    it = parser_of(
        "allreduce",
        __doc__,
        "python -m benchmarks.allreduce --peers 4 --params 16000000 --codec fp32 --rounds 5",
        "sudo python -m benchmarks.allreduce --links 100/100x4 --engines dugnad,gloo",
        "sudo python -m benchmarks.allreduce --links 50/50x4,25/25x8,12/12x4 --params 4000000 --split equal",
    )
    add_peers(it)
    it.add_argument("--params", type=int, default=16_000_000, help="length of the vector")
    it.add_argument("--codec", choices=CODECS, default="fp32", help="of dugnad; hivemind has its fp16 beside any but fp32")
    it.add_argument("--engines", default=",".join(ENGINES), help="of dugnad, hivemind, gloo")
    it.add_argument("--rounds", type=int, default=5, help="counted ones; one more comes first")
    it.add_argument("--split", choices=SPLITS, default="ours", help="who reduces how much (benchmarks/splits.py)")
    return it


def options_of(arguments: Sequence[str] | None = None) -> tuple[Options, bool]:
    """(options, whether JSON is wanted). Ends the process with a sentence and code 2 when they make no sense."""
    it = parser()
    asked = it.parse_args(arguments)
    engines = tuple(dict.fromkeys(name.strip() for name in asked.engines.split(",")))
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        it.error(f"argument --engines: no engine {unknown[0]!r}; there are {', '.join(ENGINES)}")
    links = links_of(it, asked)
    if asked.params < 1 or asked.rounds < 1:
        it.error("--params and --rounds are at least 1")
    return Options(links, bool(asked.links), asked.params, asked.codec, engines, asked.rounds, asked.split), asked.json


def main() -> None:
    options, as_json = options_of()
    result = benchmark(options)
    for warning in result["warnings"]:
        tables.say(f"warning: {warning}")
    engines = result["engines"]
    columns = ["engine", "codec", "median s", "MB/s a peer", "CPU s/GB", "peak MB", "cores busy"]
    columns += ["bound s", "of bound"] if options.shaped else []
    names = ["codec", "median_s", "mb_per_s", "cpu_s_per_gb", "peak_memory_mb", "cores_busy"]
    names += ["bound_s", "ratio_bound"] if options.shaped else []
    rows = [[engine, *(str(it.get(name) or "–") for name in names)] for engine, it in engines.items()]
    ratios = ", ".join(f"{key} {result[key]}" for key in ("ratio_hivemind", "ratio_gloo") if key in result)
    title = f"{result['peers']} peers, {options.params:,} parameters, split {options.split}"
    tables.show(result, [tables.table(f"{title}\n{ratios}" if ratios else title, columns, rows)], as_json=as_json)


if __name__ == "__main__":
    tables.run(main)
