"""GIRL-DETR: the moment retrieval backbone."""
