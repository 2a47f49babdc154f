"""The PPDB on any lsst.dax.apdb: rows in the Apdb, and in a companion all that an Apdb does not know."""
