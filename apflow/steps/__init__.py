"""Steps: one function a line of the graph."""
