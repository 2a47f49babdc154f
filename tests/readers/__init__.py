"""Alerts read by software that others wrote."""
