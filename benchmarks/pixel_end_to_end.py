"""End-to-end figures of `bench_pixels.py`: a simulated raft through `apflow replay`, scored against its truth."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from pixel_quality import say

from apflow.operate.score import score_run

#: DiaSources less reliable than this are left out of the purity.
RELIABLE = 0.5
#: (figure, name in the score, unit, limit)
FIGURES = (
    ("end_to_end_completeness_snr6", "completeness_snr6", "part", "> 0.95"),
    ("end_to_end_snr_half_found", "snr50", "sigma", "near 5.1"),
    ("end_to_end_purity", "purity", "part", "> 0.95 after the cut"),
    ("end_to_end_zero_point_bias", "zeropoint_bias_mag", "mag", "abs < 0.002"),
    ("end_to_end_astrometric_scatter", "astrometric_scatter_arcsec", "arcsec", "<= 0.02"),
)


def end_to_end(seed: int = 101, size: int = 2048) -> None:
    """Replay two visits of a raft and say how well it went, of all DiaSources and of the reliable ones."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report"
        command = [str(Path(sys.executable).with_name("apflow")), "replay", "--camera", "comcam", "--size", str(size)]
        command += ["--visits", "2", "--seed", str(seed), "--report", str(report)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the replay failed: {(done.stdout + done.stderr)[-1000:]}")
        scores = score_run(report), score_run(report, min_reliability=RELIABLE)
    for figure, key, unit, limit in FIGURES:
        whole, reliable = (float(np.float64(score[key])) for score in scores)
        more = {"error": round(scores[0]["zeropoint_bias_error_mag"], 4)} if key == "zeropoint_bias_mag" else {}
        say(figure, whole, unit, limit=limit, after_reliability_cut=round(reliable, 4), cut=RELIABLE, **more)
