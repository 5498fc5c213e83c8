"""Agents that learn in, or stand as references beside, the environments."""
