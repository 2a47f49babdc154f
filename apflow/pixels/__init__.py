"""Pure functions on pixels: arrays in, new arrays out."""
