"""apflow: the Alert Production pipeline as a Dask-distributed dataflow graph (DMTN-092)."""

__version__ = "0.1.0"
