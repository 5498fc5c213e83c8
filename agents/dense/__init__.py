"""A policy over all spans of a video: it sees clips, query and the proposals painted on the timeline."""

from vmr_env.agents.dense.policy import (
    DensePolicy,
    Evidence,
    load_policy,
    refine_rows,
    save_policy,
)

__all__ = ["DensePolicy", "Evidence", "load_policy", "refine_rows", "save_policy"]
