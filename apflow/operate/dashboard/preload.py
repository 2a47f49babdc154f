"""What the scheduler of a night loads: the page ``/apflow`` and the metrics.

``--preload apflow.operate.dashboard.preload``, or ``preload=[...]`` of
`distributed.Scheduler`. The folder of the night (``REPO/nights/<day_obs>``) is
the value of Dask's configuration key ``apflow.night-folder``, that is the
environment variable ``DASK_APFLOW__NIGHT_FOLDER`` in another process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import prometheus_client
from tornado.ioloop import PeriodicCallback

from apflow.errors import BadRequest
from apflow.operate.dashboard.detector_page import DetectorHandler
from apflow.operate.dashboard.feed import Feed
from apflow.operate.dashboard.metrics import Collector
from apflow.operate.dashboard.page import Page
from apflow.operate.dashboard.tracker import Tracker

KEY = "apflow.night-folder"
#: How often new records are looked for, ms; with nothing new it costs one call of the operating system. A night that
#: is read from its begin, after a restart, takes every second half of it.
_LOOK_MS = 100.0


async def dask_setup(scheduler: Any) -> None:
    """Add the page, the tracker of steps and the metrics to a scheduler.

    Raises
    ------
    BadRequest
        No folder of a night is configured.
    """
    folder = dask.config.get(KEY, "")
    if not folder:
        raise BadRequest(f"{KEY} is not set; accepted: the folder of a night, REPO/nights/<day_obs>")
    feed, tracker = Feed(Path(folder)), Tracker()
    scheduler.add_plugin(tracker)
    tick = PeriodicCallback(feed.refresh, _LOOK_MS)
    tick.start()
    collector = Collector(feed, scheduler)
    prometheus_client.REGISTRY.register(collector)
    scheduler.extensions["apflow-dashboard"] = (tick, collector)
    if "dashboard" not in scheduler.services and not hasattr(scheduler, "http_application"):
        return
    _add_pages(scheduler, feed, tracker)


async def dask_teardown(scheduler: Any) -> None:
    """Stop what `dask_setup` began."""
    if (begun := scheduler.extensions.pop("apflow-dashboard", None)) is None:
        return  # a scheduler that failed to start is closed as well
    tick, collector = begun
    tick.stop()
    prometheus_client.REGISTRY.unregister(collector)


def _add_pages(scheduler: Any, feed: Feed, tracker: Tracker) -> None:
    from distributed.dashboard.core import BokehApplication
    from tornado.ioloop import IOLoop

    page = Page(feed, tracker, scheduler)
    pages = BokehApplication({"/apflow": lambda _, __, doc: page.add_to(doc)}, scheduler)
    scheduler.http_application.add_application(pages)
    pages.initialize(IOLoop.current())
    # An application's own routes come before those of the applications that were added to it.
    scheduler.http_application.add_handlers(r".*", [(r"/apflow/detector", DetectorHandler, {"feed": feed})])
    pages.start()
