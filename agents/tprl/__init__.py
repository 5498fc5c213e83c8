"""TPRL: three-stage progressive reinforcement learning of a detection head."""
