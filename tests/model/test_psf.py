"""A PSF of part of an image is that of the whole."""

from __future__ import annotations

import numpy as np
import pytest

from apflow.model.psf import Psf, polynomial_exponents


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_cropped_psf_is_the_same_at_every_place(order: int) -> None:
    rng = np.random.default_rng(order)
    terms = 0.05 * rng.normal(size=(len(polynomial_exponents(order)), 7, 7))
    terms[0] += np.outer(np.hanning(9)[1:-1], np.hanning(9)[1:-1])
    whole = Psf(terms, (300, 200))
    part = whole.cropped(40, 70, (150, 90))
    assert part.shape == (150, 90) and part.order == order
    for x, y in rng.uniform(0, 89, (20, 2)):
        np.testing.assert_allclose(part.at(x, y), whole.at(x + 40, y + 70), rtol=1e-9, atol=1e-12)
