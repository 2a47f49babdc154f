"""Fetch what the services need ahead of time: ``python -m apflow.operate.services``."""

from apflow.operate.services.java import GOALS, archives, java

if __name__ == "__main__":
    java()
    for profile in GOALS:
        archives(profile)
