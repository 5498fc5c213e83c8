"""The main job, speed and result scripts."""
