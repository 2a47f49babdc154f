"""The fast Datastore of DMTN-092 section 3: copies of calibs and templates, in a chain before the main one.

It is a cache that the workers fill (`apflow.io.fast_store`), on a local disk
or in memory, and nobody registers what is in it: where a dataset is, follows
from its type and id. Whatever it cannot give, the chain takes from the main
Datastore, and a store that is gone or broken is one that has nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Config, DatasetRef, FormatterFactory, Location, StorageClass
from lsst.daf.butler.datastore import DatasetRefURIs, DatastoreConfig
from lsst.daf.butler.datastore.composites import CompositesMap
from lsst.daf.butler.datastore.file_templates import FileTemplates
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.datastores.chainedDatastore import ChainedDatastore
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.registry.interfaces import DatastoreRegistryBridgeManager
from lsst.daf.butler.repo_relocation import replaceRoot
from lsst.resources import ResourcePath

#: Datasets that never change under their id; reference stars do, and people read those from the main Datastore.
_IMMUTABLE = {"bias", "dark", "flat", "defects", "template_coadd"}

#: The id alone would do, but the Butler asks for all dimensions; of those that others imply there may be none.
_TEMPLATES = {
    "default": "{datasetType}/{datasetType}_{instrument:?}_{detector:?}_{physical_filter:?}_{skypix:?}_{id}",
    "template_coadd": "{datasetType}/{datasetType}_{skymap}_{tract}_{patch}_{band}_{id}",
}


class FastDatastore(FileDatastore):
    """A `FileDatastore` that takes nothing in and whose failures are those of a cache: it has not got it."""

    @classmethod
    def _create_from_config(
        cls, config: DatastoreConfig, bridgeManager: DatastoreRegistryBridgeManager, butlerRoot: Any
    ) -> FastDatastore:
        # That of the base class refuses a root that is not there and cannot be made: it would take the Butler with it.
        universe = bridgeManager.universe
        formatters = FormatterFactory()
        formatters.registerFormatters(config["formatters"], universe=universe)
        return cls(
            config,
            bridgeManager,
            ResourcePath(replaceRoot(config["root"], butlerRoot), forceDirectory=True, forceAbsolute=True),
            formatters,
            FileTemplates(config["templates"], universe=universe),
            CompositesMap(config["composites"], universe=universe),
            True,
        )

    def clone(self, bridgeManager: DatastoreRegistryBridgeManager) -> FastDatastore:
        """As the base class."""
        parts = (self.formatterFactory, self.templates, self.composites, True)
        return type(self)(self.config, bridgeManager, self.root, *parts)

    def get(
        self,
        ref: DatasetRef,
        parameters: Mapping[str, Any] | None = None,
        storageClass: StorageClass | str | None = None,
    ) -> Any:
        """Read a copy; `FileNotFoundError`, at which the chain goes on, where there is no good one."""
        if not _may_be_here(ref):
            raise FileNotFoundError(f"{ref} is never in the fast Datastore")
        try:
            return super().get(ref, parameters, storageClass)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f"{ref} cannot be read from the fast Datastore: {error}") from error

    def getManyURIs(
        self, refs: Iterable[DatasetRef], predict: bool = False, allow_missing: bool = False
    ) -> dict[DatasetRef, DatasetRefURIs]:
        """Where copies are, or would be if `predict`."""
        wanted = list(refs) if predict else [ref for ref, there in self.mexists(refs).items() if there]
        return super().getManyURIs(wanted, predict=True)

    def _get_expected_dataset_locations_info(self, ref: DatasetRef) -> list[tuple[Location, StoredFileInfo]]:
        return super()._get_expected_dataset_locations_info(ref) if _may_be_here(ref) else []

    def _mexists_check_expected(
        self, refs: Sequence[DatasetRef], artifact_existence: dict[ResourcePath, bool] | None = None
    ) -> dict[DatasetRef, bool]:
        here = [ref for ref in refs if _may_be_here(ref)]
        return dict.fromkeys(refs, False) | super()._mexists_check_expected(here, artifact_existence)

    def _overrideTransferMode(self, *datasets: Any, transfer: str | None = None) -> str | None:
        return transfer  # nothing is ingested here: the others of the chain decide


def _may_be_here(ref: DatasetRef) -> bool:
    return ref.datasetType.nameAndComponent()[0] in _IMMUTABLE


def put_before(config: Config, folder: str | Path) -> None:
    """Put a fast Datastore before the one of a new repository's configuration.

    Parameters
    ----------
    config : `lsst.daf.butler.Config`
        With a `FileDatastore`, which becomes the main one; changed in place.
    folder : `str` or `pathlib.Path`
        Where copies are kept, on each machine that reads them; repositories
        may share it.
    """
    main = config["datastore"].toDict()
    fast = {
        "cls": f"{FastDatastore.__module__}.{FastDatastore.__qualname__}",
        "name": "fast",
        # Ids follow from types, data ids and runs: two repositories may have the same ones for other bytes.
        "root": str(Path(folder).resolve() / f"apflow-{uuid.uuid4().hex[:12]}"),
        "records": {"table": "fast_datastore_records"},
        "templates": _TEMPLATES,
        "formatters": main["formatters"],
    }
    config["datastore"] = {
        "cls": f"{ChainedDatastore.__module__}.{ChainedDatastore.__qualname__}",
        "datastore_constraints": [{"constraints": {"reject": ["all"]}}, {"constraints": {"accept": ["all"]}}],
        "datastores": [{"datastore": fast}, {"datastore": main}],
    }
