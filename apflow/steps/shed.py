"""Work that gives way to the alerts of a detector that is late."""

from __future__ import annotations

import logging
import time

from apflow.config import Config
from apflow.model.products import Snaps

_log = logging.getLogger(__name__)


def is_shed(snaps: Snaps, config: Config, what: str) -> bool:
    """Whether optional work is left undone: so long after the end of readout, by the clock, alerts come first."""
    limit_s = config.fleet.shed_after_s
    late_s = time.time() - max(raw.arrived_unix for raw in snaps.raws)
    if not 0.0 < limit_s < late_s:
        return False
    _log.warning("%s is left out: %.1f s after the end of readout; fleet.shed_after_s is %g", what, late_s, limit_s)
    return True
