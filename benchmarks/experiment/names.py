"""Names of the agents that the main job knows, in a module that loads nothing."""

from collections.abc import Mapping
from typing import Literal

AGENTS: Mapping[str, str] = {
    "expected_gain": "vmr_env.agents.expected_gain:ExpectedGain",
    "ppo": "vmr_env.agents.ppo:PPO",
    "reinforce": "vmr_env.agents.reinforce:Reinforce",
    "grpo": "vmr_env.agents.grpo:GRPO",
    "sb3_ppo": "vmr_env.agents.sb3.vec_env:SB3PPO",
    "sb3_a2c": "vmr_env.agents.sb3.vec_env:SB3A2C",
}
"""Agents in the environments, and their classes."""

HEAD_AGENTS = ("tprl", "tprl_paper", "head_reinforce", "head_ppo", "head_grpo", "sb3_head_ppo")
"""TPRL with our settings and with the published ones, and the head as a policy under three algorithms of ours
and one of Stable-Baselines3."""

STEPWISE_AGENTS: Mapping[str, Literal["reinforce", "ppo"]] = {
    "stepwise_reinforce": "reinforce",
    "stepwise_ppo": "ppo",
}
"""The published step-wise agent after its warm-up on an oracle, by its two algorithms."""

BACKBONE_METHODS = (*HEAD_AGENTS, *STEPWISE_AGENTS)
"""Agents that need more of a backbone than its proposals: its head, or its clip features."""

DEFAULT_AGENTS = ("expected_gain", "ppo", "reinforce")
"""Methods compared on proposals without a backbone."""

BACKBONE_AGENTS = ("tprl_paper", "tprl", "reinforce", "ppo", "grpo", "expected_gain", "sb3_ppo")
"""Methods compared on a frozen backbone: TPRL, then agents in the environments over its decoder states."""
