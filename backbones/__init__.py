"""Detectors that are trained, frozen and cached."""
