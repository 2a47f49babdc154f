"""Doors to the outside world, one a service."""
