"""Metrics to Sasquatch, the observatory's database of metrics (SQR-068), over its REST API and in the background."""

from apflow.io.sasquatch.dispatch import drain, flush, send_later
from apflow.io.sasquatch.sending import Counts

__all__ = ["Counts", "drain", "flush", "send_later"]
