"""The Prompt Products Database."""
