"""The configuration and the camera of a night, from the repository its folder is in."""

from __future__ import annotations

from apflow.config import Config
from apflow.model.camera import Camera, camera_names, load_camera
from apflow.operate.dashboard.feed import Feed
from apflow.operate.repository import repository_config


def config_of(feed: Feed) -> Config | None:
    """The repository's configuration; None where the folder is in no repository."""
    repository = feed.folder.resolve().parent.parent
    return repository_config(str(repository)) if (repository / "apflow.toml").is_file() else None


def night_camera(feed: Feed) -> Camera | None:
    """The repository's camera, or else the one whose instrument the visits name; None before any is known."""
    if config := config_of(feed):
        return load_camera(config.camera)
    newest = feed.newest()
    if newest is None or not newest.instrument:
        return None
    return next((c for c in map(load_camera, camera_names()) if c.instrument == newest.instrument), None)
