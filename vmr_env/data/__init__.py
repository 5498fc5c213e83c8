"""Data sets: profiles, annotations, prediction files, and the checks on them."""
