"""The embedded default: GIRL-DETR on simulated videos."""
