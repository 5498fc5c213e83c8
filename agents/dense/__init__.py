"""A policy over all spans of a video: it sees clips, query and the proposals painted on the timeline."""
