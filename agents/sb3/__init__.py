"""Stable-Baselines3 over the environments."""
