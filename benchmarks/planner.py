"""What a plan's split of the vector is worth, from the model alone: no byte is sent. And how long the planner takes over it.

Compared are equal shards, hivemind's program, the best single reducer, and ours, in the settings of the paper and of home lines;
with the bound, the least that any split can reach (benchmarks/bound.py). The model is the planner's own: a round takes as long as
the line whose share of it takes longest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from benchmarks.bound import bound, encoded_bytes
from benchmarks.links import parse_links
from benchmarks.splits import SPLITS, seconds
from benchmarks.tables import machine, show, table
from protocols.round import planner, program

SETTINGS = {
    "the paper's mix": "200/200x4,100/100x8,50/50x4",
    "with 4 auxiliary peers": "200/200x4,100/100x8,50/50x4,200/200x4a",
    "the mix without its slow 4": "200/200x4,100/100x8",
    "that with 4 auxiliary peers": "200/200x4,100/100x8,200/200x4a",
    "16 home lines": "20/100x16",
    "8 in client mode, 1 auxiliary": "20/100x8c,1000/1000x1a",
    "4 alike": "100/100x4",
}
SWARMS = (16, 64, 256)
REPEATS = 20
WIDEST_MBIT = 1000


def compared(links_text: str, elements: int, codec: str) -> dict[str, Any]:
    links, vector_bytes = parse_links(links_text), encoded_bytes(codec, elements)
    min_s = bound(vector_bytes, links)
    equal_s = seconds(links, SPLITS["equal"](links, elements, vector_bytes), vector_bytes)
    splits = {}
    for name, split in SPLITS.items():
        fractions = split(links, elements, vector_bytes)
        took_s = seconds(links, fractions, vector_bytes)
        splits[name] = {
            "seconds": round(took_s, 3),
            "ratio_bound": round(took_s / min_s, 3),
            "speedup_equal": round(equal_s / took_s, 3),
            "fractions": [round(fraction, 4) for fraction in fractions],
        }
    return {"links": links_text, "bound_s": round(min_s, 3), "splits": splits}


def planning_s(peers: int, elements: int, vector_bytes: int) -> dict[str, float]:
    """Median and longest of whole plans for a swarm of unlike peers, a third of them in client mode; contributors chosen too."""
    present = {
        f"p{i:03}": planner.Present(
            "" if i % 3 == 1 else "h:1",
            samples=0 if i % 9 == 0 else 10 + i % 50,
            upload_bytes_s=125e3 * (1 + i * 7919 % WIDEST_MBIT),
            download_bytes_s=125e3 * (1 + i * 104729 % WIDEST_MBIT),
            samples_per_second=1.0,
        )
        for i in range(peers)
    }
    took = []
    for epoch in range(1, 1 + REPEATS):
        due = planner.Round(epoch * planner.ALL_GIVE_EVERY + 1, elements, vector_bytes, target_batch_size=20 * peers)
        began = time.perf_counter()
        planner.fresh(present, "p000", due)
        took.append(time.perf_counter() - began)
    return {"median_s": round(statistics.median(took), 5), "longest_s": round(max(took), 5)}


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--params", type=int, default=16_000_000)
    asked.add_argument("--codec", default="fp32")
    asked.add_argument("--json", action="store_true", help="one object on standard output")
    given = asked.parse_args()
    program.prepare()
    settings = {name: compared(links, given.params, given.codec) for name, links in SETTINGS.items()}
    vector_bytes = encoded_bytes(given.codec, given.params)
    planning = {str(peers): planning_s(peers, given.params, vector_bytes) for peers in SWARMS}
    rows = []
    for name, it in settings.items():
        cells = [f"{split['seconds']:.2f} ({split['speedup_equal']:.2f}x)" for split in it["splits"].values()]
        rows.append([name, it["links"], *cells, f"{it['bound_s']:.2f}"])
    title = f"Seconds of a round in the model (and how much faster than equal shards): {given.params:,} parameters, {given.codec}"
    timing = [[peers, f"{1e3 * it['median_s']:.1f}", f"{1e3 * it['longest_s']:.1f}"] for peers, it in planning.items()]
    tables = [
        table(title, ["setting", "links", *SPLITS, "bound"], rows),
        table("Milliseconds for one plan", ["peers", "median", f"longest of {REPEATS}"], timing),
    ]
    result = {"params": given.params, "codec": given.codec, "settings": settings, "planning": planning, "machine": machine()}
    show(result, tables, as_json=given.json)


if __name__ == "__main__":
    main()
