"""Where it runs: clusters and their settings."""
