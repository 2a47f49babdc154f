"""The pixel engine: what a full CCD costs, and how good its differences are, beside HOTPANTS and SExtractor.

Prints one JSON object a line. `python benchmarks/bench_pixels.py [--json] [--quick] [--data DIR] [--replay]`;
``--json`` leaves out the lines for people. ``--data`` names a folder of real pairs; ``--quick`` judges one kind of
simulated pair of one tuning seed, for work on the engine. Seeds 101 to 103 are never tuned on. CPU time is of threads
and child processes. Peers run where their binaries are on PATH, and are said to be missing elsewhere.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pixel_cost import cost
from pixel_end_to_end import end_to_end
from pixel_quality import real, simulated
from pixel_sky import KINDS

HELD_OUT = (101, 102, 103)
PARTS = ("cost", "simulated", "real", "replay")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--quick", action="store_true", help="one kind, one seed, no cost")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of simulated pairs, with commas")
    parser.add_argument("--seeds", default=",".join(map(str, HELD_OUT)), help="their seeds, with commas")
    parser.add_argument("--size", type=int, default=1024, help="side of simulated pairs, pixels")
    parser.add_argument("--ccd-size", type=int, default=0, help="side of the CCD of the cost figures; 0: a full one")
    parser.add_argument("--rounds", type=int, default=2, help="turns of the cost figures")
    parser.add_argument("--data", type=Path, help="folder of real pairs")
    parser.add_argument("--no-peers", action="store_true", help="leave out HOTPANTS and SExtractor")
    given = parser.parse_args()
    if not given.json:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    if given.quick:
        simulated(given.kinds.split(",")[:1], [1], given.size, not given.no_peers)
        return
    parts, peers = given.only or PARTS, not given.no_peers
    if "simulated" in parts:
        simulated(given.kinds.split(","), [int(s) for s in given.seeds.split(",")], given.size, peers)
    if "real" in parts:
        real(given.data, peers)
    if "replay" in parts:
        end_to_end()
    if "cost" in parts:
        cost(given.ccd_size, given.rounds, peers)


if __name__ == "__main__":
    main()
