"""The night: its records, and what supervises and shows them."""
