"""Pure functions on tables: tables in, new tables out."""
