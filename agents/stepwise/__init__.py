"""The published step-wise refinement agent."""
