"""Cost figures of `bench_pixels.py`: the chain of one full CCD by step, and the peers on the same planes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pixel_chain import build, scenario_of
from pixel_peers import hotpants_command, hotpants_path, run, sextractor_path, write_pair
from pixel_quality import say

from apflow.io.fits import read_exposure

#: Core-seconds a CCD asked for and hoped for; seconds that a cold worker may compile; GiB of memory.
LIMIT_S, STRETCH_S, COMPILE_S, PEAK_GIB = 3.0, 1.5, 2.0, 2.0
#: How many times the peers' CPU for the same work.
RATIO = 8.0
#: LSSTCam's science CCDs and cadence.
CCDS, CADENCE_S = 189, 37.0
#: Bytes a pixel that a step must read and write if each plane passed once; 4 of image and variance, 4 of a mask.
BYTES = {
    "fetch_calibs": 13 + 13,  # bias, dark, flat, defects: file and memory
    "fetch_template": 12 + 12,
    "remove_signature": 2 + 13 + 12,
    "calibrate": 12 + 12,
    "match_template": 12 + 12,
    "subtract": 24 + 12 + 4 + 4,  # both images; the difference; the matched template and the filtered map
    "detect_and_measure": 4 + 4 + 4,
}
#: Steps whose work the peers do: subtraction, detection, measurement.
PEER_STEPS = ("subtract", "detect_and_measure")
PEER = "HOTPANTS (recommended settings) and SExtractor"
_PARAMETERS = "NUMBER\nX_IMAGE\nY_IMAGE\nFLUX_AUTO\nFLUX_APER\nFLUXERR_APER\nA_IMAGE\nB_IMAGE\nTHETA_IMAGE\nFLAGS\n"


def chain(root: Path, size: int, of: int, numbers: list[int], keep: Path | None = None) -> dict[str, Any]:
    """Run some visits in a new process; see `pixel_chain.run_visits`."""
    command = [sys.executable, str(Path(__file__).with_name("pixel_chain.py")), str(root), "--of", str(of)]
    command += ["--size", str(size), "--visits", ",".join(map(str, numbers))]
    if keep is not None:
        command += ["--keep", str(keep)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the chain failed: {done.stderr[-1000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peers(folder: Path) -> float:
    """CPU seconds of HOTPANTS and SExtractor on science.fits and template.fits of `pixel_chain.run_visits`."""
    science, template = read_exposure(folder / "science.fits"), read_exposure(folder / "template.fits")
    work = folder / "peers"
    work.mkdir(exist_ok=True)
    write_pair(work, science, template)
    subtracted = run(hotpants_command(science, template, "recommended"), work)
    (work / "default.param").write_text(_PARAMETERS)
    extractor = sextractor_path()
    assert extractor is not None
    command = [extractor, "difference.fits", "-PARAMETERS_NAME", "default.param", "-FILTER", "N"]
    command += ["-CATALOG_NAME", "found.cat", "-DETECT_THRESH", "5", "-ANALYSIS_THRESH", "5", "-VERBOSE_TYPE", "QUIET"]
    command += ["-WEIGHT_TYPE", "MAP_RMS", "-WEIGHT_IMAGE", "noise.fits"]
    found = run(command, work)
    say("peer_hotpants_cpu", subtracted, "core-s")
    say("peer_sextractor_cpu", found, "core-s")
    return float(subtracted + found)


def cost(size: int, rounds: int, with_peers: bool) -> None:
    """Figures of one CCD of `size` pixels, 0 for a full one, in turns with the peers."""
    of = 2 * rounds
    have = hotpants_path() is not None and sextractor_path() is not None
    with tempfile.TemporaryDirectory() as name:
        root, keep = Path(name) / "butler", Path(name)
        build(root, scenario_of(size or None, of, 1))
        runs, theirs = [], []
        for k in range(rounds):
            runs.append(chain(root, size, of, [2 * k, 2 * k + 1], keep if k == 0 else None))
            if have and with_peers:
                theirs.append(peers(keep))
    _figures(runs, theirs, (size or 4096) ** 2)


def _figures(runs: list[dict[str, Any]], theirs: list[float], pixels: int) -> None:
    # The first visit of a process also loads compiled code.
    first, warm = [r["visits"][0]["steps"] for r in runs], [r["visits"][1]["steps"] for r in runs]
    bandwidth = statistics.median(r["bandwidth"] for r in runs)
    total = statistics.median(sum(steps.values()) for steps in warm)
    say("ccd_total_core_s", total, "core-s", limit=f"<= {LIMIT_S}", stretch=STRETCH_S, least=_least(warm))
    say("ccd_cores_for_lsstcam_at_37_s", CCDS * total / CADENCE_S, "cores")
    for step in warm[0]:
        more: dict[str, Any] = {}
        if step in BYTES:
            more = {"peer": "memory bandwidth bound", "peer_value": round(BYTES[step] * pixels / bandwidth, 4)}
        say(f"ccd_{step}_core_s", statistics.median(s[step] for s in warm), "core-s", **more)
    bound = sum(BYTES.values()) * pixels / bandwidth
    say("ccd_memory_bound", bound, "s", bandwidth_gb_s=round(bandwidth / 1e9, 1))
    cold = statistics.median(sum(a.values()) - sum(b.values()) for a, b in zip(first, warm, strict=True))
    extra = {
        step: round(statistics.median(a[step] - b[step] for a, b in zip(first, warm, strict=True)), 2)
        for step in warm[0]
    }
    say("cold_worker_compilation", max(r["compile_s"] for r in runs), "s", limit=f"<= {COMPILE_S}")
    # Mostly modules that are imported and compiled code that is loaded.
    say("cold_worker_first_ccd_extra", cold, "core-s", by_step=extra)
    say("ccd_peak_memory", max(r["peak_gib"] for r in runs), "GiB", limit=f"<= {PEAK_GIB}")
    if not theirs:
        print(json.dumps({"name": "ccd_subtract_and_detect_core_s", "missing": PEER}), flush=True)
        return
    ours = [sum(s[step] for step in PEER_STEPS) for s in warm]
    ratios = [peer / mine for peer, mine in zip(theirs, ours, strict=True)]
    peer_value = round(statistics.median(theirs), 2)
    more = {
        "peer": PEER,
        "peer_value": peer_value,
        "ratio": round(statistics.median(ratios), 1),
        "limit": f">= {RATIO}",
    }
    say("ccd_subtract_and_detect_core_s", statistics.median(ours), "core-s", **more)


def _least(warm: list[dict[str, float]]) -> float:
    return round(min(sum(steps.values()) for steps in warm), 3)
