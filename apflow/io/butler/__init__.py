"""The Butler: Rubin's lsst-daf-butler behind the few calls that apflow needs.

Importing this package does not import the Butler (1.5 s): workers that only
read and write files at known paths never pay for it.
"""

from apflow.io.butler.create import create_repository
from apflow.io.butler.paths import OUTPUTS, output_path, output_run
from apflow.io.butler.repository import Repository

__all__ = ["OUTPUTS", "Repository", "create_repository", "output_path", "output_run"]
