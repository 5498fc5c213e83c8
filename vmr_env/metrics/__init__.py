"""The field's metrics, and the baselines that need no model."""
