"""Cameras: one YAML file each."""
