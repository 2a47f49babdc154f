"""What runs: the graphs."""
