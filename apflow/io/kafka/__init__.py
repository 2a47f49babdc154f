"""Kafka: alerts out, alerts in, and the registry of their schemas."""
