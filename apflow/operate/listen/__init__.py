"""Listening for visits: what is announced, and what is seen of its images, becomes runs of graphs."""
