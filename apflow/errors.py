"""The taxonomy of errors, on one page: each class says who acts.

Every error that a step raises on purpose is an `ApflowError`. A detector-visit
that meets one ends in the terminal `state` of its class; any other exception
ends it as ``failed``. All of them pickle, since they travel through Dask.
"""

from __future__ import annotations

from typing import ClassVar


class ApflowError(Exception):
    """Base of every deliberate error.

    Attributes
    ----------
    state : `str`
        Terminal state of a detector-visit that ends with this error
        (see `apflow.model.ledger.State`).
    """

    state: ClassVar[str] = "failed"


class NoWork(ApflowError):
    """There is nothing to do, and that is no failure. Nobody acts."""


class NoTemplate(NoWork):
    """No template covers enough of the detector."""

    state = "no_template"


class VisitCancelled(NoWork):
    """The visit was cancelled while it was under way."""

    state = "cancelled"


class BadRequest(ApflowError):
    """A name or value given by the caller is not acceptable. The caller acts."""


class ImageTimeout(ApflowError):
    """The science image did not arrive in time. The summit acts."""

    state = "image_timeout"


class DataError(ApflowError):
    """An image or a table cannot be used. Whoever made it acts."""

    state = "bad_data"


class Misannounced(DataError):
    """An image is not what was announced: other group, filter, pointing or sky angle. Whoever drives the visit acts."""


class NoCalib(DataError):
    """No master calibration is valid for the visit. Calibration experts act."""

    state = "no_calib"


class BadSubtraction(DataError):
    """A difference image is too bad to look for changes in it. Whoever made the template or the image acts."""


class ServiceError(ApflowError):
    """A service could not be reached; nothing was written. Safe to retry."""


class AfterWrite(ApflowError):
    """Something failed after the database commit. Retry only what follows it."""
