"""Nouns: frozen, checked, no input or output."""
