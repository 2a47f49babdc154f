"""Alert packets, their archive and their publication."""
