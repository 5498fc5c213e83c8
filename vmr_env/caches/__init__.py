"""Decoder-state caches: their format, writing, reading, and the tables derived from them."""
