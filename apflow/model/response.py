"""How the amplifiers of a CCD respond: crosstalk between them, and their linearity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

#: Corrections of linearity are kept at every so many ADU, from 0 to the converter's end: small enough for the
#: innermost cache, and between two of them a straight line is right to 1e-3 ADU for any sane amplifier.
LINEARITY_STEP = 16
_LINEARITY_ADU = np.arange(0, 65536 + 1, LINEARITY_STEP, dtype=float)
#: A ghost as strong as this is no crosstalk, but a wrong number.
_MAX_CROSSTALK = 0.1


def crosstalk_matrix(rows: Any, names: Sequence[str]) -> F4:
    """Check the crosstalk of one kind of CCD.

    Parameters
    ----------
    rows : sequence of sequences of `float`
        ``rows[victim][source]``: the part of the source's signal that is added
        to the victim, ADU an ADU, of pixels that are read at the same time.
    names : sequence of `str`
        The amplifiers, in the order of both axes.

    Raises
    ------
    ValueError
        It is not square of that size, a number is not finite or not below 0.1,
        or an amplifier is said to add to itself.
    """
    n = len(names)
    try:
        matrix = np.array(rows, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"crosstalk is not a table of numbers; accepted: {n} rows of {n}") from None
    if matrix.shape != (n, n):
        raise ValueError(
            f"crosstalk has shape {matrix.shape}; accepted: {(n, n)}, a row a victim and a column a source"
        )
    for victim, source in np.argwhere(~(np.abs(matrix) < _MAX_CROSSTALK)).tolist():
        raise ValueError(
            f"crosstalk from {names[source]} to {names[victim]} is {matrix[victim, source]}; "
            f"accepted: between -{_MAX_CROSSTALK} and {_MAX_CROSSTALK}"
        )
    for i in np.flatnonzero(np.diag(matrix)).tolist():
        raise ValueError(f"crosstalk from {names[i]} to itself is {matrix[i, i]}; accepted: 0")
    return _constant(matrix)


def linearity_tables(spec: Mapping[str, Any], names: Sequence[str]) -> F4:
    """Corrections of the linearity of each amplifier, ADU.

    Parameters
    ----------
    spec : mapping
        By amplifier, or ``all``: either ``polynomial`` [c2, c3, ...], the
        correction c2 s^2 + c3 s^3 + ... of the signal s, or ``adu`` and
        ``correction``, tables of signal and correction, joined by straight
        lines and constant beyond their ends. Signals are above the overscan's
        level. An amplifier that is not named is linear.
    names : sequence of `str`
        The amplifiers.

    Returns
    -------
    tables : `numpy.ndarray`, (n amplifiers, 4097), float32
        What is to be added to a signal of 0, `LINEARITY_STEP`, 2 `LINEARITY_STEP`, ... ADU.

    Raises
    ------
    ValueError
        An amplifier is unknown; a form is none of these; or the corrected
        signal does not rise with the measured one.
    """
    if unknown := sorted(set(spec) - set(names) - {"all"}):
        raise ValueError(f"linearity of {unknown[0]!r} is given; accepted: all, {', '.join(names)}")
    tables = np.zeros((len(names), _LINEARITY_ADU.size))
    for table, name in zip(tables, names, strict=True):
        own = spec.get(name, spec.get("all"))
        if own is not None:
            table[:] = _corrections(own, name)
            if not (np.diff(_LINEARITY_ADU + table) > 0).all():
                raise ValueError(f"linearity of {name}: the corrected signal falls somewhere; accepted: one that rises")
    return _constant(tables)


def _corrections(own: Any, name: str) -> F8:
    keys = set(own) if isinstance(own, Mapping) else set()
    try:
        if keys == {"polynomial"}:
            coefficients = np.array(own["polynomial"], float).reshape(-1)
            found = np.polynomial.polynomial.polyval(_LINEARITY_ADU, [0.0, 0.0, *coefficients])
        elif keys == {"adu", "correction"}:
            at, correction = np.array(own["adu"], float), np.array(own["correction"], float)
            if at.ndim != 1 or at.shape != correction.shape or at.size < 2 or not (np.diff(at) > 0).all():
                raise ValueError
            found = np.interp(_LINEARITY_ADU, at, correction)
        else:
            raise ValueError
    except (TypeError, ValueError):
        found = np.full(1, np.nan)
    if not np.isfinite(found).all():
        raise ValueError(
            f"linearity of {name} is {own!r}; accepted: {{polynomial: [c2, ...]}} "
            "or {adu: [...], correction: [...]} of finite numbers, adu rising"
        )
    return np.asarray(found)


def _constant(array: F8) -> F4:
    """As float32 that nobody can change: cameras are shared."""
    out = array.astype(np.float32)
    out.flags.writeable = False
    return out
