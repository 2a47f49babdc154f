"""The PPDB on PostgreSQL 15 or newer."""
