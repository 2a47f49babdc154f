"""The template tessellation covers the sky without gaps."""

from __future__ import annotations

import numpy as np
import pytest

from apflow.errors import BadRequest
from apflow.model.camera import load_camera
from apflow.model.sky import deproject, project, separation_arcsec
from apflow.model.skymap import SkyMap


@pytest.mark.parametrize(("ra", "dec"), [(150.0, -30.0), (0.001, 0.0), (45.0, 89.7), (359.99, -41.0)])
def test_every_pixel_of_a_detector_is_inside_exactly_one_inner_region(ra, dec):
    camera, skymap = load_camera("lsstcam", 512), SkyMap(400, 40)
    for detector in (camera.detector("R22_S11"), camera.detector("R01_S00")):
        cells = skymap.cells(camera.region(detector, ra, dec, 33.0))
        wcs = camera.wcs(detector, ra, dec, 33.0)
        x, y = np.random.default_rng(1).uniform(0, 511, (2, 2000))
        sky = wcs.pixel_to_sky(x, y)
        inside = np.sum([c.inner_region.contains(*sky) for c in cells], 0)
        assert len(cells) > 1
        assert (inside == 1).all()
        assert all(separation_arcsec(*c.region.centre, *c.inner_region.centre) < 1e-3 for c in cells)


def test_name_says_it_all():
    skymap = SkyMap(2000, 100)
    assert SkyMap.from_name(skymap.name) == skymap
    with pytest.raises(BadRequest, match="rings"):
        SkyMap.from_name("rings_v1")


def test_projection_and_its_inverse():
    rng = np.random.default_rng(2)
    xi, eta = rng.uniform(-3, 3, (2, 500))
    for ra0, dec0 in ((0.0, 0.0), (359.9, -89.9), (120.0, 45.0)):
        assert np.allclose(project(*deproject(xi, eta, ra0, dec0), ra0, dec0), (xi, eta), atol=1e-10)
    assert np.isnan(project(180.0, 0.0, 0.0, 0.0)[0])
