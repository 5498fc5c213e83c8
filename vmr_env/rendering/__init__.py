"""A running episode as text, as a picture, and in a window."""
