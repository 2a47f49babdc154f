"""The night on the Dask dashboard: ``/apflow``, its detector pages, and metrics for Prometheus."""
