"""The Data Butler."""
