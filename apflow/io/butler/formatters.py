"""How the Butler reads and writes apflow's types, so that ``butler.get`` gives what the steps use."""

from __future__ import annotations

import json
from typing import Any

from lsst.daf.butler import FormatterV2
from lsst.resources import ResourcePath

from apflow.io import fits


class RawFormatter(FormatterV2):
    """Raw images as `apflow.model.exposure.Raw`."""

    default_extension = ".fits"
    supported_extensions = frozenset({".fits", ".fits.fz", ".fits.gz"})
    can_read_from_local_file = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Read the image or its ``info``."""
        return fits.read_info(path) if component == "info" else fits.read_raw(path)

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write the image."""
        fits.write_raw(uri.ospath, in_memory_dataset)


class ExposureFormatter(FormatterV2):
    """Exposures as `apflow.model.exposure.Exposure`, or one of its attributes."""

    default_extension = ".fits"
    can_read_from_local_file = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Read the exposure or a component."""
        exposure = fits.read_exposure(path)
        return exposure if component is None else getattr(exposure, component)

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write the exposure."""
        fits.write_exposure(uri.ospath, in_memory_dataset)


class ImageFormatter(FormatterV2):
    """Master calibs as arrays."""

    default_extension = ".fits"
    can_read_from_local_file = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Read the array."""
        return fits.read_image(path)

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write the array."""
        fits.write_image(uri.ospath, in_memory_dataset)


class MetricsFormatter(FormatterV2):
    """Metrics as Rubin's MetricMeasurementBundle where lsst.analysis.tools is installed, else as a dict."""

    default_extension = ".json"
    can_read_from_local_file = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Read the bundle."""
        storage_class: Any = self.file_descriptor.storageClass
        try:
            bundle = storage_class.pytype
        except ImportError:
            # The Butler's own storage class names a type of the C++ stack. A repository may not redefine
            # it, and without its type no read would pass the Butler's check.
            bundle = storage_class._pytype = dict
        with open(path, encoding="utf-8") as file:
            text = file.read()
        return json.loads(text) if bundle is dict else bundle.model_validate_json(text)

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write a bundle: a dict, or a pydantic model."""
        dump = getattr(in_memory_dataset, "model_dump_json", lambda: json.dumps(in_memory_dataset, allow_nan=False))
        with open(uri.ospath, "w", encoding="utf-8") as file:
            file.write(dump())
