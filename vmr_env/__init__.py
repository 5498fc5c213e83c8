"""Video moment retrieval as Gymnasium environments."""

__version__ = "0.1.0"
