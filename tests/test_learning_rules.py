"""Every part of the agents' learning rules, in a tree whose optimum dynamic programming tells."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trees import (
    ACTIONS,
    HILL,
    MASKS,
    ROOT_A,
    ROOT_B,
    STATES,
    TREE,
    VALLEY_A,
    VALLEY_B,
    Tree,
    greedy,
    observed,
    optimum,
    value,
)

from vmr_env.agents import policy_agent, ppo, reinforce
from vmr_env.agents.expected_gain import ExpectedGain, ExpectedGainConfig
from vmr_env.agents.grpo import GRPO, GRPOConfig
from vmr_env.agents.networks import FlatNetwork
from vmr_env.agents.policy_agent import PolicyAgent, descend
from vmr_env.agents.policy_gradient import clipped_gain
from vmr_env.agents.ppo import PPO, PPOConfig
from vmr_env.agents.reinforce import Reinforce, ReinforceConfig
from vmr_env.agents.sb3.vec_env import SB3A2C, SB3PPO

Rule = Callable[[int], int]
N = 32
COMMON: dict[str, Any] = {"lr": 1e-2, "hidden": 16, "minibatch": 60}
AGENTS: dict[str, tuple[type[PolicyAgent[Any]], type, dict[str, Any], int]] = {
    "ppo": (PPO, PPOConfig, COMMON, 20),
    "reinforce": (Reinforce, ReinforceConfig, {**COMMON, "entropy": 0.02}, 30),
    "grpo": (GRPO, GRPOConfig, {**COMMON, "batches": 2}, 20),
    "expected gain": (ExpectedGain, ExpectedGainConfig, COMMON, 20),
}
WITH_VALUES = ("ppo", "reinforce")
WITH_ENTROPY = ("ppo", "reinforce", "grpo")
SMALL = {"learning_rate": 1e-2, "policy_kwargs": {"net_arch": [16]}}


@pytest.fixture(autouse=True)
def flat_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree has no spans that features of actions could be made of."""

    def make(kind: str, observer: Any, actions: int, hidden: int) -> FlatNetwork:
        return FlatNetwork(observer, actions, hidden)

    monkeypatch.setattr(policy_agent, "make_network", make)


def make_agent(name: str, tree: Any = None, seed: int = 0, **changes: Any) -> Any:
    agent, config, settings, rounds = AGENTS[name]
    made = agent(tree or Tree(N), seed, config(**{**settings, **changes}))
    made.rounds = rounds
    return made


def trained(agent: Any) -> list[dict[str, float]]:
    return [agent.update() for _ in range(agent.rounds)]


def chosen(agent: Any) -> dict[int, int]:
    """The agent's action in every state."""
    actions = agent.act(observed(np.array(STATES)), MASKS)
    return dict(zip(STATES, actions.tolist(), strict=True))


def path(agent: Any, state: int | None) -> list[tuple[int, int]]:
    """States and actions of its episode."""
    actions, walked = chosen(agent), []
    while state is not None:
        walked.append((state, actions[state]))
        state = TREE[state][actions[state]].state
    return walked


def by_rule(rule: Rule, state: int | None) -> list[tuple[int, int]]:
    walked = []
    while state is not None:
        walked.append((state, rule(state)))
        state = TREE[state][rule(state)].state
    return walked


def entropy_of(agent: Any, state: int) -> float:
    policy = agent.probabilities(observed(np.array([state])), MASKS[[state]])[0]
    policy = policy[policy > 0]
    return float(-(policy * np.log(policy)).sum())


def value_of(agent: Any, states: list[int]) -> list[float]:
    rows = torch.from_numpy(observed(np.array(states))), torch.from_numpy(MASKS[states])
    return agent._members()[0].network(*rows).values.tolist()  # type: ignore[no-any-return]


def test_the_tree_needs_two_steps_and_an_eye_for_the_state() -> None:
    assert by_rule(optimum, ROOT_A) == [(ROOT_A, 1), (VALLEY_A, 2)]
    assert by_rule(optimum, ROOT_B) == [(ROOT_B, 2), (VALLEY_B, 0)]
    assert by_rule(greedy, ROOT_A) == [(ROOT_A, 0), (HILL, 1)]
    assert by_rule(greedy, ROOT_B) == [(ROOT_B, 1), (HILL, 1)]
    assert [value(ROOT_A), value(ROOT_B)] == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize("name", [*AGENTS, "sb3 ppo", "sb3 a2c"])
def test_every_agent_reaches_its_optimum(name: str) -> None:
    """Expected gain looks one step ahead, by definition; all others find what loses first."""
    tree: Any = Tree(N)
    if name == "sb3 ppo":
        agent: Any = SB3PPO(tree, 0, {"batch_size": 64, **SMALL})
    elif name == "sb3 a2c":
        agent = SB3A2C(tree, 0, SMALL)
    else:
        agent = make_agent(name, tree)
    agent.rounds = 40 if name.startswith("sb3") else agent.rounds
    figures = trained(agent)
    rule = greedy if name == "expected gain" else optimum
    for root in (ROOT_A, ROOT_B):
        assert path(agent, root) == by_rule(rule, root)
    if name != "expected gain":
        returns = [row["charts/episode_return"] for row in figures]
        assert returns[0] < 0.4 < 0.8 < returns[-1] <= 0.95


@pytest.mark.parametrize("name", WITH_VALUES)
@pytest.mark.parametrize("limit", [None, 2])
def test_values_come_to_be_those_of_dynamic_programming(name: str, limit: int | None) -> None:
    """Also where a time limit falls together with the end, after which nothing follows."""
    agent = make_agent(name, Tree(N, limit=limit))
    losses = [row["losses/value"] for row in trained(agent)]
    assert np.mean(losses[-3:]) < 0.2 * np.mean(losses[:3])
    states = [ROOT_A, ROOT_B, VALLEY_A, VALLEY_B]
    assert value_of(agent, states) == pytest.approx([value(state) for state in states], abs=0.15)


@pytest.mark.parametrize("name", WITH_VALUES)
def test_without_its_coefficient_the_value_does_not_learn(name: str) -> None:
    agent = make_agent(name, value=0.0, weight_decay=0.0)
    layer = agent._members()[0].network.expected
    before = layer.weight.clone()
    agent.update()
    assert torch.equal(layer.weight, before)
    agent = make_agent(name, weight_decay=0.0)
    agent.update()
    assert not torch.equal(agent._members()[0].network.expected.weight, before)


@pytest.mark.parametrize("name", WITH_ENTROPY)
def test_the_bonus_keeps_the_policy_open(name: str) -> None:
    open_, free = make_agent(name, entropy=3.0), make_agent(name, entropy=0.0)
    for agent in (open_, free):
        for _ in range(12):
            agent.update()
    for root in (ROOT_A, ROOT_B):
        possible = int(MASKS[root].sum())
        assert entropy_of(open_, root) > 0.9 * np.log(possible)
        assert entropy_of(free, root) < 0.8 * np.log(possible)


@pytest.mark.parametrize("name", WITH_VALUES)
def test_what_a_time_limit_cuts_off_is_worth_what_follows(name: str) -> None:
    """Every episode is one step long; that the valleys are worth their loss is known from others."""
    agent = make_agent(name, Tree(N, tuple(STATES), limit=1))
    trained(agent)
    assert [chosen(agent)[root] for root in (ROOT_A, ROOT_B)] == [optimum(ROOT_A), optimum(ROOT_B)]


def test_grpo_counts_what_a_time_limit_cuts_off_so_far() -> None:
    agent = make_agent("grpo", Tree(N, tuple(STATES), limit=1))
    trained(agent)
    assert [chosen(agent)[root] for root in (ROOT_A, ROOT_B)] == [greedy(ROOT_A), greedy(ROOT_B)]


def test_who_discounts_all_that_follows_is_greedy() -> None:
    agent = make_agent("ppo", gamma=0.0)
    trained(agent)
    assert [chosen(agent)[root] for root in (ROOT_A, ROOT_B)] == [greedy(ROOT_A), greedy(ROOT_B)]


@pytest.mark.parametrize(
    ("name", "module", "expected"), [("ppo", ppo, (0.9, 0.3)), ("reinforce", reinforce, (1.0, 1.0))]
)
def test_advantages_are_estimated_as_set(
    monkeypatch: pytest.MonkeyPatch, name: str, module: Any, expected: tuple[float, float]
) -> None:
    asked, gae = [], module.gae

    def watched(*args: Any) -> Tensor:
        asked.append(args[3:5])
        return gae(*args)  # type: ignore[no-any-return]

    monkeypatch.setattr(module, "gae", watched)
    make_agent(name, **({"gamma": 0.9, "lam": 0.3} if name == "ppo" else {})).update()
    assert asked == [expected]


def learnt_rows(agent: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Tickets of the states of every gradient step of one round."""
    network, rows = agent._members()[0].network, []
    forward = network.forward

    def watched(observations: Tensor, masks: Tensor) -> Any:
        if torch.is_grad_enabled():
            rows.append(observations[:, -1].long().tolist())
        return forward(observations, masks)

    monkeypatch.setattr(network, "forward", watched)
    agent.update()
    return rows


@pytest.mark.parametrize("name", AGENTS)
def test_every_transition_is_learnt_once_in_each_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(name, Tree(N, tickets=True), minibatch=50)
    rows = learnt_rows(agent, monkeypatch)
    passes = getattr(agent.config, "epochs", 1)
    seen = [ticket for batch in rows for ticket in batch]
    each, counts = np.unique(seen, return_counts=True)
    assert (counts == passes).all()
    if name != "grpo":  # whose episodes are of different lengths
        assert len(each) == agent.config.steps * N
        assert agent.env.issued >= len(each)
    left = len(each) % 50
    assert left > 0  # otherwise this shows nothing
    assert [len(batch) for batch in rows] == ([50] * (len(each) // 50) + [left]) * passes
    assert rows[0] != sorted(rows[0])
    if passes > 1:
        assert set(rows[0]) != set(rows[len(rows) // passes])  # each pass in an order of its own


def test_groups_share_their_root_and_are_compared_within(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(8)
    agent = make_agent("grpo", tree, group=4)
    agent.collector.reset(3)
    step, told = tree.step, []

    def watched(actions: Any) -> Any:
        before = tree.states.copy()
        result = step(actions)
        told.append((before, np.array(actions), result[1], result[2]))
        return result

    monkeypatch.setattr(tree, "step", watched)
    experience, returns = agent.collect(agent._members()[0].network)
    mean = float(returns.mean())
    assert all(len(set(group)) == 1 for group in told[0][0].reshape(2, 4).tolist())
    # Slot by slot: the episode is over where it first ends; what restarts there is no part of it.
    totals, steps = np.zeros(8), np.zeros(8, int)
    for slot in range(8):
        for _, _, rewards, ended in told:
            totals[slot] += rewards[slot]
            steps[slot] += 1
            if ended[slot]:
                break
    assert len(set(steps.tolist())) > 1  # otherwise nothing restarts
    assert mean == pytest.approx(totals.mean(), abs=1e-6)
    assert len(experience.actions) == steps.sum()
    row = 0
    for t, (states, actions, _, _) in enumerate(told):
        for slot in np.flatnonzero(steps > t):
            group = totals[slot // 4 * 4 :][:4]
            assert experience.observations[row].argmax() == states[slot]
            assert experience.actions[row] == actions[slot]
            wanted = (totals[slot] - group.mean()) / max(group.std(ddof=1), 1e-4)
            assert experience.advantages[row].item() == pytest.approx(wanted, abs=1e-4)
            row += 1


def test_what_restarts_after_a_time_limit_is_no_part_of_a_group() -> None:
    agent = make_agent("grpo", Tree(8, limit=1), group=4)
    agent.collector.reset(3)
    experience, _ = agent.collect(agent._members()[0].network)
    assert len(experience.actions) == 8


def test_groups_are_of_many_samples() -> None:
    agent = make_agent("grpo", Tree(N), group=4)
    agent.collector.reset(1)
    experience, _ = agent.collect(agent._members()[0].network)
    first = experience.observations[:N].argmax(1)
    assert set(first.tolist()) == {ROOT_A, ROOT_B}


def test_a_clipped_gain_stops_where_the_clip_does() -> None:
    ratios, advantages = torch.tensor([0.5, 0.9, 1.1, 2.0] * 2), torch.tensor([1.0] * 4 + [-2.0] * 4)
    ratios.requires_grad_()
    gain = clipped_gain(ratios, advantages, 0.2)
    by_hand = [0.5, 0.9, 1.1, 1.2, -1.6, -1.8, -2.2, -4.0]
    assert gain.item() == pytest.approx(np.mean(by_hand))
    (slopes,) = torch.autograd.grad(gain, ratios)
    # No slope where the ratio has already gone too far to its advantage.
    assert (slopes * 8).tolist() == pytest.approx([1, 1, 1, 0, 0, -2, -2, -2])


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_clip_bounds_the_change_of_a_round(name: str) -> None:
    def change(clip: float) -> float:
        agent = make_agent(name, clip=clip, epochs=16, lr=3e-3, entropy=0.0, weight_decay=0.0)
        roots = observed(np.array([ROOT_A, ROOT_B])), MASKS[[ROOT_A, ROOT_B]]
        before = agent.probabilities(*roots)
        agent.update()
        return float(np.abs(agent.probabilities(*roots) - before).max())

    assert change(0.02) < 0.5 * change(0.9)


def test_a_step_is_no_longer_than_the_norm_allows() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    descend((weight * torch.tensor([3.0, 4.0])).sum(), optimiser, 0.5)
    assert weight.tolist() == pytest.approx([-0.3, -0.4])
    descend((weight * torch.tensor([0.03, 0.04])).sum(), optimiser, 0.5)
    assert weight.tolist() == pytest.approx([-0.33, -0.44])


@pytest.mark.parametrize("name", AGENTS)
def test_settings_reach_what_they_are_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(name, lr=0.004, weight_decay=0.07, max_norm=0.3, hidden=8, members=3)
    norms = []

    def watched(loss: Tensor, optimiser: Any, max_norm: float, **figures: Tensor) -> Tensor:
        norms.append(max_norm)
        return torch.zeros(())

    monkeypatch.setattr(f"vmr_env.agents.{type(agent).__module__.split('.')[-1]}.descend", watched)
    agent.update()
    assert set(norms) == {0.3}
    assert len(agent._members()) == 3
    for member in agent._members():
        (group,) = member.optimiser.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.004, 0.07)
        assert member.network.scores.weight.shape == (ACTIONS, 8)
