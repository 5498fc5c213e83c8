"""Clip and query features: files, stores, encoders."""
