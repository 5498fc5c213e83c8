"""Cross-fitted ensembles of agents."""
