"""FITS files hold what was written, astropy reads the same, and bad ones are refused by name."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits as astropy_fits
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from apflow.errors import DataError, ServiceError
from apflow.io import fits
from apflow.io.atomic import atomic
from apflow.io.cards import card, parse_cards
from apflow.io.hdu import Hdu, read_hdus, read_headers, read_primary, write_hdus
from apflow.model.exposure import Mask
from tests.io import builders


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_a_raw_comes_back_as_it_was_and_astropy_reads_the_same(tmp_path: Path, dtype: str) -> None:
    path, raw = tmp_path / "raw.fits", builders.raw(builders.info(airmass=1.2), dtype)
    fits.write_raw(path, raw)
    back = fits.read_raw(path)
    assert back.info == raw.info
    assert list(back.segments) == list(raw.segments)
    with astropy_fits.open(path) as hdus:
        hdus.verify("exception")
        assert hdus[0].header["DETNAME"] == "R22_S11"
        for name, data in raw.segments.items():
            assert back.segments[name].dtype == data.dtype
            assert back.segments[name].dtype.isnative
            np.testing.assert_array_equal(back.segments[name], data)
            np.testing.assert_array_equal(hdus[name].data, data)


def test_the_shutter_stands_before_the_plan(tmp_path: Path) -> None:
    """D3: the exposure time used is the header's, refined by the shutter."""
    raw = builders.raw(builders.info())
    shutter = {"EXPTIME": 30.0, "SHUTTIME": 29.97, "SHUTOPEN": 60786.2, "SHUTCLOS": 60786.2004}
    fits.write_raw(tmp_path / "raw.fits", dataclasses.replace(raw, header=dict(raw.header) | shutter))
    info = fits.read_info(tmp_path / "raw.fits")
    assert info.exposure_time_s == 29.97
    assert info.mjd_mid_tai == pytest.approx(60786.2002, abs=1e-9)


@pytest.mark.parametrize(
    ("shutter", "open_s", "offset_s"),
    [
        # Rubin's: a measured time beside the planned one, and the times of the exposure.
        ({"EXPTIME": 30.0, "SHUTTIME": 30.06, "MJD-BEG": 60786.2, "MJD-END": 60786.20035}, 30.06, 0.06),
        # Times at which the shutter opened and closed, and no measured time.
        ({"EXPTIME": 30.0, "SHUTOPEN": 60786.2, "SHUTCLOS": 60786.2 + 28.5 / 86400}, 28.5, -1.5),
        # All of them, of which the last disagrees with the others.
        ({"EXPTIME": 30.0, "SHUTTIME": 30.0, "SHUTOPEN": 60786.2, "SHUTCLOS": 60786.2 + 20 / 86400}, 30.0, -10.0),
        # Nothing measured.
        ({"EXPTIME": 30.0, "MJD-BEG": 60786.2, "MJD-END": 60786.20035}, 30.0, math.nan),
        ({"EXPTIME": 30.0, "SHUTTIME": None, "SHUTOPEN": 60786.2}, 30.0, math.nan),
    ],
)
def test_exposure_time_of_each_form_of_header(shutter: dict[str, float], open_s: float, offset_s: float) -> None:
    header = {key: value for key, value in fits.header_of(builders.info()).items() if key != "EXPTIME"} | shutter
    assert fits.info_of(header, "here").exposure_time_s == pytest.approx(open_s, abs=1e-4)
    assert fits.shutter_offset_s(header) == pytest.approx(offset_s, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("shutter", [{"SHUTTIME": -1.0}, {"SHUTOPEN": 60786.3, "SHUTCLOS": 60786.2}])
def test_a_shutter_that_closes_before_it_opens_is_refused(shutter: dict[str, float]) -> None:
    header = fits.header_of(builders.info()) | shutter
    with pytest.raises(DataError, match="here: the shutter was open for -"):
        fits.info_of(header, "here")


def test_an_end_that_is_not_given_follows_from_the_exposure_time() -> None:
    header = fits.header_of(builders.info())
    del header["MJD-END"], header["EXPID"]
    assert fits.info_of(header, "here") == builders.info()


@pytest.mark.parametrize("key", ["INSTRUME", "DETNUM", "GROUPID", "FILTER", "RA", "DEC", "ROTPA", "EXPTIME", "MJD-BEG"])
def test_a_missing_keyword_is_named_with_its_file(tmp_path: Path, key: str) -> None:
    raw = builders.raw(builders.info())
    fits.write_raw(tmp_path / "raw.fits", dataclasses.replace(raw, header={key: None}))
    with pytest.raises(DataError, match=rf"raw\.fits: keyword .*{key}.* missing"):
        fits.read_info(tmp_path / "raw.fits")


def test_a_keyword_of_a_wrong_kind_and_times_in_utc_are_refused() -> None:
    header = fits.header_of(builders.info())
    with pytest.raises(DataError, match="DETNUM is 'R22'"):
        fits.info_of(header | {"DETNUM": "R22"}, "here")
    with pytest.raises(DataError, match="TIMESYS is 'UTC'; accepted: TAI"):
        fits.info_of(header | {"TIMESYS": "UTC"}, "here")


@pytest.mark.parametrize("keep", [0, 100, 2880, 2900, 5760, 40_000, -2880])
def test_a_truncated_raw_is_refused_wherever_it_ends(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "raw.fits"
    fits.write_raw(path, builders.raw(builders.info()))
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    message = "truncated|not a FITS|no segments"
    with pytest.raises(DataError, match=message) as error:
        fits.read_raw(path)
    assert str(path) in str(error.value)
    if keep != 2880:  # a primary header alone is a whole FITS file
        with pytest.raises(DataError, match=message):
            read_headers(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.fits").write_text("a letter, not an image")
    (tmp_path / "odd.fits").write_bytes(
        (card("SIMPLE", True) + card("BITPIX", 7) + card("NAXIS", 0) + "END".ljust(80)).ljust(2880).encode()
    )
    for name, message in (("text.fits", "not a FITS file"), ("none.fits", "No such file"), ("odd.fits", "BITPIX")):
        with pytest.raises(DataError, match=message):
            fits.read_raw(tmp_path / name)


def test_an_exposure_comes_back_as_it_was(tmp_path: Path) -> None:
    path, exposure = tmp_path / "exposure.fits", builders.exposure()
    fits.write_exposure(path, exposure, {"TRACT": 7, "PATCH": 12})
    back = fits.read_exposure(path)
    for plane in ("image", "variance", "mask"):
        np.testing.assert_array_equal(getattr(back, plane), getattr(exposure, plane))
        assert getattr(back, plane).dtype == getattr(exposure, plane).dtype
    assert back.unit == exposure.unit
    assert back.info == exposure.info
    assert back.psf is not None and exposure.psf is not None
    np.testing.assert_array_equal(back.psf.terms, exposure.psf.terms)
    assert back.psf.shape == exposure.psf.shape
    assert {k: v for k, v in back.summary.items() if math.isfinite(v)} == {"psf_fwhm_arcsec": 0.83, "nPsfStars": 57.0}
    assert math.isnan(back.summary["sky_noise"])
    assert read_primary(path)["TRACT"] == 7


def test_astropy_reads_an_exposure_with_its_wcs_and_planes(tmp_path: Path) -> None:
    exposure = builders.exposure()
    fits.write_exposure(tmp_path / "exposure.fits", exposure)
    x, y = np.array([0.0, 63.0, 20.5]), np.array([0.0, 63.0, 40.0])
    assert exposure.wcs is not None
    ra, dec = exposure.wcs.pixel_to_sky(x, y)
    with astropy_fits.open(tmp_path / "exposure.fits") as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "IMAGE", "MASK", "VARIANCE", "PSF"]
        assert hdus["IMAGE"].header["BUNIT"] == "nJy"
        for plane in Mask:
            assert 1 << hdus["MASK"].header[f"MP_{plane.name}"] == plane
        for name in ("IMAGE", "MASK", "VARIANCE"):
            theirs = WCS(hdus[name].header).all_world2pix(ra, dec, 0)
            np.testing.assert_allclose(theirs, [x, y], atol=1e-6)


def test_a_template_has_no_info(tmp_path: Path) -> None:
    bare = builders.exposure(info=None, psf=None, wcs=None, summary={})
    fits.write_exposure(tmp_path / "cell.fits", bare)
    back = fits.read_exposure(tmp_path / "cell.fits")
    assert (back.info, back.psf, back.wcs, dict(back.summary)) == (None, None, None, {})


def test_an_exposure_without_its_mask_is_refused(tmp_path: Path) -> None:
    fits.write_image(tmp_path / "image.fits", np.zeros((4, 4), np.float32))
    with pytest.raises(DataError, match=r"image\.fits has no HDU IMAGE"):
        fits.read_exposure(tmp_path / "image.fits")


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_images_of_every_type(tmp_path: Path, dtype: str) -> None:
    array = np.random.default_rng(3).integers(0, 2, (5, 7)).astype(dtype)
    fits.write_image(tmp_path / "image.fits", array[::-1], {"KIND": "defects"})  # also when not contiguous
    back, header = fits.read_image_with_header(tmp_path / "image.fits")
    np.testing.assert_array_equal(back, array[::-1])
    np.testing.assert_array_equal(astropy_fits.getdata(tmp_path / "image.fits"), array[::-1])
    assert back.flags.writeable
    assert header["KIND"] == "defects"


def test_compressed_scaled_and_gzipped_files_are_read(tmp_path: Path) -> None:
    data = np.arange(10_000, dtype=np.int16).reshape(100, 100)
    primary = astropy_fits.PrimaryHDU()
    packed = astropy_fits.CompImageHDU(data, name="Segment00", compression_type="RICE_1")
    astropy_fits.HDUList([primary, packed]).writeto(tmp_path / "packed.fits")
    scaled = astropy_fits.PrimaryHDU(data.copy())
    scaled.scale("int16", bscale=2.0, bzero=10.0)
    scaled.writeto(tmp_path / "scaled.fits")
    astropy_fits.PrimaryHDU(data).writeto(tmp_path / "zipped.fits.gz")
    np.testing.assert_array_equal(fits.read_segments(tmp_path / "packed.fits")["SEGMENT00"], data)
    np.testing.assert_allclose(fits.read_image(tmp_path / "scaled.fits"), data, atol=1.0)
    np.testing.assert_array_equal(fits.read_image(tmp_path / "zipped.fits.gz"), data)
    assert read_primary(tmp_path / "zipped.fits.gz") == {}


def test_tables_beside_images_are_passed_over(tmp_path: Path) -> None:
    table = astropy_fits.BinTableHDU.from_columns([astropy_fits.Column("t", "D", array=np.arange(3.0))])
    image = astropy_fits.ImageHDU(np.ones((2, 2), np.float32), name="IMAGE")
    astropy_fits.HDUList([astropy_fits.PrimaryHDU(), table, image]).writeto(tmp_path / "both.fits")
    assert [hdu.name for hdu in read_hdus(tmp_path / "both.fits")] == ["", "IMAGE"]


_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=150).map(str.rstrip)
_KEYS = st.from_regex(r"[A-Z][A-Z0-9_]{0,7}", fullmatch=True)


@given(_KEYS, st.one_of(_TEXT, st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_header_values_survive_and_astropy_agrees(key: str, value: object) -> None:
    text = card(key, value)
    assert len(text) % 80 == 0
    if key not in ("COMMENT", "HISTORY", "END", "CONTINUE", "HIERARCH"):
        assert parse_cards(text.encode()) == {key: value}
        assert astropy_fits.Header.fromstring(text)[key] == value


def test_a_failed_write_leaves_nothing_and_the_old_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "image.fits"
    fits.write_image(path, np.zeros((2, 2), np.uint8))
    with pytest.raises(TypeError, match="complex"):
        write_hdus(path, [Hdu("", {}, np.zeros((2, 2), np.complex64))])
    with pytest.raises(ServiceError, match="cannot be written"), atomic(path):
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["image.fits"]
    assert fits.read_image(path).shape == (2, 2)


def test_readers_see_a_whole_file_while_it_is_written_again(tmp_path: Path) -> None:
    path, done = tmp_path / "image.fits", threading.Event()
    fits.write_image(path, np.zeros((300, 300), np.int32))

    def write() -> None:
        for i in range(100):
            fits.write_image(path, np.full((300, 300), i, np.int32))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        image = fits.read_image(path)
        assert (image == image[0, 0]).all()
    writer.join()
