"""Dipoles: a positive and a negative point source side by side, as what moved between the two images leaves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from apflow.errors import DataError
from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.pixels.deblend import Fit, box_about, fit_points, points_chi2
from apflow.pixels.forced import psf_stack
from apflow.pixels.planes import unusable
from apflow.pixels.sky_frame import bearing_deg

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Box = tuple[int, int, int, int]

#: Chi^2 of the point source beyond its pixels, in sigma, from which a source may be a dipole.
_MISFIT = 5.0
#: Fits on an image at most, those of highest S/N: each takes about 2 ms.
_MOST = 60
#: Lobes are looked for and may move within this, FWHM.
_REACH = 1.6
#: Least S/N of both lobes together (Rubin's DipoleFit has the same), and gain in chi^2 over a point source.
_LEAST_SNR, _LEAST_GAIN = 7.07, 25.0
#: A point source explains this part of a dipole with 65 % of its flux in one lobe; Rubin's limit is there.
_MOST_EXPLAINED = 0.78
#: The difference agrees with positions and fluxes from the two images when its chi^2 is so much, or so much of
#: the dipole's light in chi^2, above that of the fit to itself alone.
_AGREES, _AGREES_PART = 40.0, 0.2
COLUMNS = (
    "dipoleMeanFlux", "dipoleMeanFluxErr", "dipoleFluxDiff", "dipoleFluxDiffErr", "dipoleLength", "dipoleAngle",
    "dipoleChi2", "dipoleNdata", "dipoleFitAttempted", "isDipole",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Dipole:
    """A fitted dipole.

    Attributes
    ----------
    positive, negative : `numpy.ndarray`, (3,)
        Absolute flux, x and y of each lobe.
    variance : `tuple` [`float`, `float`, `float`]
        Of the positive flux, of the negative one, and their covariance.
    chi2 : `float`
        On the difference image.
    ndata : `int`
    likely : `bool`
        Whether it is better described as a dipole than as a point source.
    """

    positive: F8
    negative: F8
    variance: tuple[float, float, float]
    chi2: float
    ndata: int
    likely: bool

    @property
    def mean(self) -> tuple[float, float]:
        """Mean of the lobes' absolute fluxes, with its error."""
        p, n, c = self.variance
        return float(self.positive[0] + self.negative[0]) / 2, float(np.sqrt(max(p + n + 2 * c, 0.0))) / 2

    @property
    def difference(self) -> tuple[float, float]:
        """Positive less negative absolute flux, with its error."""
        p, n, c = self.variance
        return float(self.positive[0] - self.negative[0]), float(np.sqrt(max(p + n - 2 * c, 0.0)))


def fit_dipole(difference: Difference, science: Exposure | None, x: float, y: float) -> Dipole | None:
    """A dipole at a position, or None when there is none to be found.

    A dipole whose lobes are closer than the PSF is wide tells only flux times
    length; the science image and the template tell the two apart (Reiss 2016,
    DMTN-007): a point is fitted to each, and where the difference agrees with
    these two points they are the lobes, otherwise those of a fit to the
    difference alone.

    Parameters
    ----------
    difference : `Difference`
    science : `Exposure`, optional
        Without it only the difference is fitted.
    x, y : `float`
        Pixels.
    """
    exposure = difference.exposure
    assert exposure.psf is not None
    psf = psf_stack(exposure.psf, np.array([x]), np.array([y]))[0]
    fwhm = exposure.psf.fwhm_px()
    half = int(np.ceil(2.0 * fwhm))
    box = box_about(np.array([x]), np.array([y]), half, exposure.shape)
    lobes = _lobes(exposure, psf, x, y, fwhm)
    if lobes is None:
        return None
    (px, py), (nx, ny) = lobes
    both = fit_points(exposure, psf, np.array([px, nx]), np.array([py, ny]), box, _REACH * fwhm)
    if not (both.ok and both.flux[0] > 0 > both.flux[1] and np.isfinite(both.covariance).all()):
        return None
    single = min(
        (fit_points(exposure, psf, np.array([a]), np.array([b]), box, fwhm) for a, b in ((px, py), (nx, ny))),
        key=lambda fit: fit.chi2,
    )
    found = _alone(both, single)
    if science is None:
        return found
    apart = _of_the_two(difference, science, found, fwhm)
    if apart is None:
        return found
    chi2 = points_chi2(exposure, psf, np.stack([apart.positive, apart.negative * [-1, 1, 1]]), box)
    if chi2 > both.chi2 + max(_AGREES, _AGREES_PART * (single.chi2 - both.chi2)):
        return found
    return dataclasses.replace(apart, chi2=chi2)


def fit_dipoles(difference: Difference, science: Exposure, sources: pd.DataFrame) -> pd.DataFrame:
    """Dipole models of the sources that a point source does not fit.

    Parameters
    ----------
    difference : `Difference`
    science : `Exposure`
        With the WCS, if there is one.
    sources : `pandas.DataFrame`
        x, y, snr, isDipole, psfChi2, psfNdata, pixelFlags_streakCenter.

    Returns
    -------
    columns : `pandas.DataFrame`
        A row for each source, NaN where none was fitted. isDipole is the
        fit's verdict where there is one, that of the detection elsewhere;
        dipoleAngle the bearing from the negative to the positive lobe,
        [0, 360) degrees from North by East; dipoleFluxDiff positive where
        the positive lobe is the brighter one.

    Raises
    ------
    DataError
        The difference has no PSF.
    """
    if difference.exposure.psf is None:
        raise DataError("a dipole fit needs the PSF of the difference image; accepted: a difference with psf set")
    n = len(sources)
    values: dict[str, NDArray[np.generic]] = {name: np.full(n, np.nan) for name in COLUMNS}
    values["dipoleNdata"] = np.zeros(n, np.int64)
    detected = sources["isDipole"].to_numpy(bool)
    values["isDipole"], values["dipoleFitAttempted"] = detected.copy(), np.zeros(n, bool)
    ndata = sources["psfNdata"].to_numpy(float)
    misfit = sources["psfChi2"].to_numpy(float) - ndata > _MISFIT * np.sqrt(2 * ndata)
    misfit &= ~sources["pixelFlags_streakCenter"].to_numpy(bool)
    rows = np.flatnonzero(detected | misfit)
    rows = rows[np.lexsort((-sources["snr"].to_numpy()[rows], ~detected[rows]))][:_MOST]
    x, y = sources["x"].to_numpy(float), sources["y"].to_numpy(float)
    for i in rows:
        values["dipoleFitAttempted"][i] = True
        dipole = fit_dipole(difference, science, x[i], y[i])
        if dipole is not None:
            for name, value in _row(dipole, science).items():
                values[name][i] = value
        elif not detected[i]:
            values["isDipole"][i] = False
    return pd.DataFrame(values)


def _row(dipole: Dipole, science: Exposure) -> dict[str, float | bool]:
    row: dict[str, float | bool] = {"isDipole": dipole.likely}
    row["dipoleMeanFlux"], row["dipoleMeanFluxErr"] = dipole.mean
    row["dipoleFluxDiff"], row["dipoleFluxDiffErr"] = dipole.difference
    row["dipoleChi2"], row["dipoleNdata"] = dipole.chi2, dipole.ndata
    if science.wcs is not None:
        middle, step = (dipole.positive + dipole.negative)[1:] / 2, (dipole.positive - dipole.negative)[1:]
        row["dipoleAngle"], row["dipoleLength"] = bearing_deg(science.wcs, middle[0], middle[1], step[0], step[1])
    return row


def _lobes(exposure: Exposure, psf: F4, x: float, y: float, fwhm: float) -> tuple[F8, F8] | None:
    """Positions (x, y) of the highest and the lowest PSF flux about a source; None where both have one sign."""
    reach, half = int(np.ceil(_REACH * fwhm)), len(psf) // 2
    x0, x1, y0, y1 = box_about(np.array([x]), np.array([y]), reach + half, exposure.shape)
    part = np.s_[y0:y1, x0:x1]
    image = np.where(unusable(exposure.mask[part]), np.float32(0), exposure.image[part])
    smooth = fftconvolve(image, psf[::-1, ::-1], "same")
    v, u = np.mgrid[part]
    near = np.hypot(u - x, v - y) <= _REACH * fwhm
    high, low = (np.where(near, smooth, fill) for fill in (-np.inf, np.inf))
    if not near.any() or high.max() <= 0 or low.min() >= 0:
        return None
    top, bottom = np.unravel_index(high.argmax(), near.shape), np.unravel_index(low.argmin(), near.shape)
    return np.array([x0 + top[1], y0 + top[0]], float), np.array([x0 + bottom[1], y0 + bottom[0]], float)


def _alone(both: Fit, single: Fit) -> Dipole:
    """The dipole that the difference alone tells of, judged against a point source."""
    points = np.stack([np.abs(both.flux), both.x, both.y], 1)
    c = both.covariance
    gain = both.null - both.chi2
    explained = (both.null - single.chi2) / gain if gain > 0 else 1.0
    snr = float(np.hypot(*both.snr))
    # Lobes closer than the PSF have fluxes of large errors; what they leave together is what counts.
    likely = max(snr, np.sqrt(max(gain, 0.0))) > _LEAST_SNR and single.chi2 - both.chi2 > _LEAST_GAIN
    likely = bool(likely and explained < _MOST_EXPLAINED)
    # The negative lobe's absolute flux has the opposite sign in the covariance.
    return Dipole(points[0], points[1], (c[0, 0], c[3, 3], -c[0, 3]), both.chi2, both.ndata, likely)


def _of_the_two(difference: Difference, science: Exposure, found: Dipole, fwhm: float) -> Dipole | None:
    """The lobes as points of the science image and of the template; None where one has none there."""
    points, variances = [], []
    for image, lobe in ((science, found.positive), (difference.matched, found.negative)):
        if image.psf is None:
            return None
        x, y = lobe[1:2], lobe[2:3]
        psf = psf_stack(image.psf, x, y)[0]
        box = box_about(x, y, int(np.ceil(1.5 * image.psf.fwhm_px())), image.shape)
        if box[0] >= box[1] or box[2] >= box[3]:
            return None
        fit = fit_points(image, psf, x, y, box, fwhm)
        if not (fit.ok and fit.snr[0] > _LEAST_SNR):
            return None
        points.append(np.array([fit.flux[0], fit.x[0], fit.y[0]]))
        variances.append(float(fit.covariance[0, 0]))
    return dataclasses.replace(
        found, positive=points[0], negative=points[1], variance=(variances[0], variances[1], 0.0)
    )
