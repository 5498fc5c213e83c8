"""Simulated videos and detectors, for work without any data."""
