"""Which peaks are which sources: close pairs come apart, the peaks along a trail become one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from apflow.model.exposure import Exposure
from apflow.pixels.deblend import MOST, box_about, fit_points, groups
from apflow.pixels.forced import psf_stack, shift_psf
from apflow.pixels.planes import bad_bits
from apflow.pixels.psf_fit import MOST_SHIFT, fit_psf
from apflow.pixels.shape import adaptive_moments, elongation, psf_moments
from apflow.pixels.trail import LEAST_ELONGATION, LONGEST, fit_trail, trail_box
from apflow.pixels.warp import TABLE

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
#: Middle x, y, length, angle.
Line = tuple[float, float, float, float]

#: Chi^2 that a pair must gain on a point source (noise gives 16 in a thousand with three parameters more), and the
#: part of the point source's misfit that it must explain: residuals of bright stars have misfits of other kinds.
_PAIR_GAIN, _PAIR_PART = 25.0, 0.7
#: Least separation of a pair, FWHM, and least S/N of each of its sources.
_PAIR_FWHM, _PAIR_SNR = 0.6, 5.0
#: Peaks of a trail lie off its line by this at most, FWHM (rms), and it leaves this part of their light unexplained.
_OFF_LINE, _UNEXPLAINED = 0.5, 0.1
#: Pairs and trails tried on an image at most, those of highest S/N: each takes some ms.
_MOST_TRIED = 40


@dataclass(frozen=True, eq=False)
class Resolved:
    """Sources with their PSF fits, in the order of `peaks`.

    Attributes
    ----------
    peaks : `pandas.DataFrame`
        As detected, with rows added and left out; trail_px and trail_rad are
        NaN except where the peaks along a trail became one.
    psfs : `numpy.ndarray`, (n, k, k), float32
    fit : `dict`
        As `apflow.pixels.psf_fit.fit_psf` gives it.
    parent : `numpy.ndarray`, (n,), int64
        Number of the blend that a source was taken from, -1 for none.
    crowded : `numpy.ndarray`, (n,), bool
        In a group of more than can be fitted together.
    moments, of_psf : `numpy.ndarray`, (n, 3)
        Adaptive moments xx, yy, xy, px^2; NaN where there are none.
    elongation, angle : `numpy.ndarray`, (n,)
        Sigma, and radians from +x towards +y.
    usable : `numpy.ndarray`, (n,), int64
        Pixels that the moments had.
    """

    peaks: pd.DataFrame
    psfs: F4
    fit: dict[str, F8]
    parent: I8
    crowded: NDArray[np.bool_]
    moments: F8
    of_psf: F8
    elongation: F8
    angle: F8
    usable: I8


def resolve(exposure: Exposure, peaks: pd.DataFrame) -> Resolved:
    """Sources of a difference image from its peaks.

    Sources whose stamps touch are fitted together. A point that is longer
    than the PSF is split where two points describe it better than a point or
    a trail; peaks in one footprint become one where a trail describes them
    better than as many points.

    Parameters
    ----------
    exposure : `Exposure`
        The difference, with its PSF.
    peaks : `pandas.DataFrame`
        From `apflow.pixels.detect.detect`.
    """
    peaks = _trails_as_one(exposure, peaks.assign(trail_px=np.nan, trail_rad=np.nan))
    found = _fit_all(exposure, peaks)
    split = _split(exposure, found)
    return found if split is None else _fit_all(exposure, split)


def _fit_all(exposure: Exposure, peaks: pd.DataFrame) -> Resolved:
    assert exposure.psf is not None
    x, y = peaks["x"].to_numpy(np.int64), peaks["y"].to_numpy(np.int64)
    psfs = psf_stack(exposure.psf, x, y)
    fit = fit_psf(exposure, psfs, x, y)
    number = groups(x, y, exposure.psf.fwhm_px())
    size = np.bincount(number, minlength=1)[number] if len(number) else number
    parent = np.full(len(x), -1)
    for group, g in enumerate(np.flatnonzero(np.bincount(number, minlength=1) > 1)):
        members = np.flatnonzero(number == g)
        if len(members) <= MOST and _fit_together(exposure, psfs[members[0]], fit, members):
            parent[members] = group
    alone = np.where(parent < 0, len(x) + np.arange(len(x)), parent)
    order = np.argsort(alone, kind="stable")
    bounds = np.flatnonzero(np.diff(alone[order], prepend=-1, append=-1) != 0)
    points = np.stack([fit["flux"], fit["x"], fit["y"]], 1)
    stamps, chi2, usable = _isolate(
        exposure.image, exposure.variance, exposure.mask, psfs, points, order, bounds, parent >= 0, TABLE
    )
    fit["chi2"] = np.where(parent >= 0, chi2, fit["chi2"])
    sign = np.where(peaks["isNegative"].to_numpy(bool), np.float32(-1), np.float32(1))
    of_psf = psf_moments(psfs)
    middle = np.floor(points[:, 1:] + 0.5)
    moments, _ = adaptive_moments(stamps * sign[:, None, None], points[:, 1:] - middle, of_psf)
    with np.errstate(divide="ignore", invalid="ignore"):
        longer, angle = elongation(moments, of_psf, fit["flux"] / fit["fluxErr"])
    return Resolved(peaks, psfs, fit, parent, size > MOST, moments, of_psf, longer, angle, usable)


def _fit_together(exposure: Exposure, psf: F4, fit: dict[str, F8], members: I8) -> bool:
    """Replace the fits of sources by a simultaneous one, if there is one that keeps their signs."""
    x, y = fit["x"][members], fit["y"][members]
    box = box_about(x, y, len(psf) // 2, exposure.shape)
    both = fit_points(exposure, psf, x, y, box, MOST_SHIFT)
    if not both.ok or (both.flux * fit["flux"][members] <= 0).any() or not np.isfinite(both.covariance).all():
        return False
    c = both.covariance
    fit["flux"][members], fit["x"][members], fit["y"][members] = both.flux, both.x, both.y
    fit["fluxErr"][members] = np.sqrt(np.diag(c)[::3])
    fit["xVar"][members], fit["yVar"][members] = np.diag(c)[1::3], np.diag(c)[2::3]
    fit["xyCov"][members] = np.diag(c, 1)[1::3]
    fit["failed"][members] = 0.0
    return True


def _trails_as_one(exposure: Exposure, peaks: pd.DataFrame) -> pd.DataFrame:
    """The peaks, those along a trail replaced by its middle."""
    assert exposure.psf is not None
    fwhm = exposure.psf.fwhm_px()
    box = ["x0", "y0", "x1", "y1", "isNegative"]
    drop: list[int] = []
    peaks = peaks.reset_index(drop=True)
    shared = peaks[peaks.duplicated(box, keep=False) & ~peaks["isDipole"].to_numpy(bool)]
    for _, part in list(shared.groupby(box, sort=True))[:_MOST_TRIED]:
        if len(part) < 2:
            continue
        line = _line(part, fwhm)
        trail = None if line is None else _as_trail(exposure, part, line, fwhm)
        if trail is None:
            continue
        strongest = part.index[int(part["snr"].abs().to_numpy().argmax())]
        drop += [i for i in part.index if i != strongest]
        middle = np.clip(np.rint(trail[1:3]), 0, np.array(exposure.shape[::-1]) - 1).astype(int)
        peaks.loc[strongest, ["x", "y"]] = middle
        peaks.loc[strongest, ["trail_px", "trail_rad"]] = trail[3:]
    return peaks.drop(index=drop).reset_index(drop=True) if drop else peaks


def _line(part: pd.DataFrame, fwhm: float) -> Line | None:
    """Middle, length and angle of the line through peaks; None where they lie on none, or too close to tell."""
    xy = part[["x", "y"]].to_numpy(float)
    middle = xy.mean(0)
    _, _, axes = np.linalg.svd(xy - middle)
    along, off = (xy - middle) @ axes.T[:, 0], (xy - middle) @ axes.T[:, 1]
    if np.sqrt(np.mean(off**2)) > _OFF_LINE * fwhm or not fwhm <= np.ptp(along) <= LONGEST:
        return None
    middle = middle + 0.5 * (along.max() + along.min()) * axes[0]
    return float(middle[0]), float(middle[1]), float(np.ptp(along) + fwhm), float(np.arctan2(axes[0, 1], axes[0, 0]))


def _as_trail(exposure: Exposure, part: pd.DataFrame, line: Line, fwhm: float) -> F8 | None:
    """Flux, middle, length and angle of a trail that describes peaks better than points do."""
    assert exposure.psf is not None
    psf = psf_stack(exposure.psf, np.array(line[:1]), np.array(line[1:2]))[0]
    box = trail_box(*line, len(psf) // 2, exposure.shape)
    trail = fit_trail(exposure, psf, line, box, fwhm)
    if not trail.ok:
        return None
    nearest = part.loc[part["snr"].abs().sort_values(ascending=False, kind="stable").index[:MOST]]
    points = fit_points(exposure, psf, nearest["x"].to_numpy(float), nearest["y"].to_numpy(float), box, MOST_SHIFT)
    if trail.chi2 - trail.ndata > _UNEXPLAINED * (points.null - trail.ndata) + 5 * np.sqrt(2 * trail.ndata):
        return None
    # Akaike's criterion: each parameter more has to gain 2 in chi^2.
    if points.ok and points.chi2 + 2 * 3 * len(nearest) < trail.chi2 + 2 * 5:
        return None
    return trail.values


def _split(exposure: Exposure, found: Resolved) -> pd.DataFrame | None:
    """Peaks with the sources that are two each replaced by the two; None where there are no such."""
    assert exposure.psf is not None
    fwhm, fit, peaks = exposure.psf.fwhm_px(), found.fit, found.peaks
    ndata = fit["ndata"]
    single = (found.parent < 0) & ~found.crowded & ~peaks["isDipole"].to_numpy(bool)
    single &= np.isnan(peaks["trail_px"].to_numpy()) & (found.elongation > LEAST_ELONGATION)
    single &= fit["chi2"] - ndata > _PAIR_GAIN
    rows = np.flatnonzero(single)
    rows = rows[np.argsort(-peaks["snr"].abs().to_numpy()[rows], kind="stable")][:_MOST_TRIED]
    pairs = {i: pair for i in rows if (pair := _pair(exposure, found, int(i), fwhm)) is not None}
    if not pairs:
        return None
    parts = [peaks.drop(index=list(pairs))]
    for i, rows_of_pair in pairs.items():
        parts.append(peaks.loc[[i, i]].assign(**{k: rows_of_pair[:, c] for c, k in enumerate(("x", "y", "snr"))}))
    together = pd.concat(parts, ignore_index=True)
    return together.astype({"x": np.int64, "y": np.int64}).sort_values(["y", "x"], kind="stable", ignore_index=True)


def _pair(exposure: Exposure, found: Resolved, i: int, fwhm: float) -> F8 | None:
    """Pixels and S/N (2, 3) of the two points that a source is, if it is."""
    fit, psf = found.fit, found.psfs[i]
    x, y, angle = fit["x"][i], fit["y"][i], found.angle[i]
    half = separation(found, i) / 2
    step = np.array([-half, half])
    xs, ys = x + step * np.cos(angle), y + step * np.sin(angle)
    box = box_about(np.array([x]), np.array([y]), len(psf) // 2 + 2, exposure.shape)
    one = fit_points(exposure, psf, np.array([x]), np.array([y]), box, MOST_SHIFT)
    two = fit_points(exposure, psf, xs, ys, box, fwhm)
    gain = one.chi2 - two.chi2
    if not two.ok or gain < max(_PAIR_GAIN, _PAIR_PART * (one.chi2 - one.ndata)):
        return None
    if (two.snr * np.sign(fit["flux"][i]) < _PAIR_SNR).any() or np.isnan(two.snr).any():
        return None
    if np.hypot(*np.diff([two.x, two.y])[:, 0]) < _PAIR_FWHM * fwhm:
        return None
    trail = fit_trail(exposure, psf, (x, y, np.sqrt(3) * 2 * half, angle), box, fwhm)
    if trail.ok and trail.chi2 + 2 * 5 < two.chi2 + 2 * 6:
        return None
    return np.stack([np.rint(two.x), np.rint(two.y), two.snr], 1)


def separation(found: Resolved, i: int) -> float:
    """Of two equal points whose variance is that of a source beyond the PSF's, px; a trail is sqrt(3) times as long."""
    c, s = np.cos(found.angle[i]), np.sin(found.angle[i])
    xx, yy, xy = found.moments[i] - found.of_psf[i]
    return float(2 * np.sqrt(max(c * c * xx + s * s * yy + 2 * c * s * xy, 0.0)))


@njit(cache=True, nogil=True)
def _isolate(image, variance, mask, psfs, points, order, bounds, blended, table):  # type: ignore[no-untyped-def]
    """Stamps without the other sources of each one's blend, NaN where pixels are bad; chi^2 of blended ones."""
    n, k = psfs.shape[0], psfs.shape[1]
    r = k // 2
    ny, nx = image.shape
    stamps = np.full((n, k, k), np.float32(np.nan))
    chi2, usable = np.zeros(n), np.zeros(n, np.int64)
    moved, work = np.empty((k, k), np.float32), np.empty((k, k), np.float32)
    for g in range(bounds.size - 1):
        for p in range(bounds[g], bounds[g + 1]):
            s = order[p]
            cx, cy = int(np.floor(points[s, 1] + 0.5)), int(np.floor(points[s, 2] + 0.5))
            for j in range(max(0, r - cy), min(k, ny - cy + r)):
                for i in range(max(0, r - cx), min(k, nx - cx + r)):
                    if not bad_bits(mask[cy + j - r, cx + i - r]):
                        stamps[s, j, i] = image[cy + j - r, cx + i - r]
                        usable[s] += 1
            if not blended[s]:
                continue
            for turn in range(2):
                # The others first; then, for chi^2 alone, the source itself.
                total = 0.0
                for q in range(bounds[g], bounds[g + 1]):
                    o = order[q]
                    if (o == s) != (turn == 1):
                        continue
                    ox, oy = int(np.floor(points[o, 1] + 0.5)), int(np.floor(points[o, 2] + 0.5))
                    shift_psf(psfs[o], points[o, 1] - ox, points[o, 2] - oy, table, moved, work)
                    for j in range(max(0, oy - cy), min(k, k + oy - cy)):
                        for i in range(max(0, ox - cx), min(k, k + ox - cx)):
                            m = points[o, 0] * moved[j - oy + cy, i - ox + cx]
                            if turn == 0:
                                stamps[s, j, i] -= m
                            elif not np.isnan(stamps[s, j, i]) and variance[cy + j - r, cx + i - r] > 0:
                                total += (stamps[s, j, i] - m) ** 2 / variance[cy + j - r, cx + i - r]
                if turn == 1:
                    chi2[s] = total
    return stamps, chi2, usable
