"""Experiments: data, runs, methods, results."""
