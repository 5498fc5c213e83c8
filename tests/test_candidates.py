"""The action mode whose actions are the candidates for an answer; `test_kernel` has its episodes."""

from collections.abc import Iterator

import numpy as np
import pytest
from caches import random_batch
from refinement import environment, user_cache_in, written

from vmr_env.agents.expected_gain import ExpectedGain, ExpectedGainConfig
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.actions import MOVES, Moves, get_action_mode

N = 12


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("candidates")) as folder:
        yield written(folder / "cache", random_batch(N, q=4))


def test_all_crossed_spans_of_the_first_proposals_are_among_them(cache: DecoderStateCache) -> None:
    """Each gains what its tIoU says."""
    env = environment(cache, n=N, actions="candidates")
    env.reset(seed=0, options={"sample": np.arange(N), "start": 0})
    gains, names = env.episodes.gains(), env.action_mode.names()
    crossed = 0
    for sample in range(N):
        clip = 1 / float(cache.durations[sample])
        for i, j in np.ndindex(3, 3):
            action = names.index(f"start as proposal {i + 1}, end as proposal {j + 1}")
            start, end = float(cache.spans[sample, i, 0]), float(cache.spans[sample, j, 1])
            there = i > 0 and j > 0 and max(i, j) < cache.counts[sample]  # those of proposal 0 stay
            least = min(clip, float(np.diff(cache.spans[sample, 0])[0]))
            assert env.episodes.mask[sample, action] == (there and end - start >= least - 1e-6)
            if env.episodes.mask[sample, action]:
                overlaps = [0.0]
                for low, high in cache.moments[sample].astype(float):
                    common = max(min(end, high) - max(start, low), 0)
                    overlaps.append(common / (end - start + high - low - common))
                wanted = max(overlaps) - env.episodes.tiou[sample]
                assert gains[sample, action] == pytest.approx(wanted, abs=1e-5)
                crossed += i != j
    assert crossed > N / 2


def test_names_say_what_is_borrowed() -> None:
    names = get_action_mode("candidates", 2, None).names()
    assert len(names) == len(set(names)) == 10 * 10 - 1 + 2 + 1
    assert names[0] == "start -8, end -8 clips"
    assert names[7] == "start -8 clips, end as proposal 1"
    assert "start as proposal 2, end +1 clips" in names
    assert "start as proposal 3, end as proposal 1" in names
    assert names[-3:] == ["switch to proposal 1", "switch to proposal 2", "stop"]


@pytest.mark.parametrize(
    ("form", "borrowed", "message"),
    [
        ("continuous", 2, "borrowed is 2, expected 0 where actions are continuous"),
        ("listed", -1, "borrowed is -1"),
        ("listed", 1.5, "borrowed is 1.5"),
    ],
)
def test_what_cannot_be_borrowed_is_refused(form: str, borrowed: float, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Moves(form, (MOVES,), borrowed=borrowed)  # type: ignore[arg-type]


def test_our_agents_learn_over_candidates(cache: DecoderStateCache) -> None:
    env = environment(cache, n=N, actions="candidates")
    agent = ExpectedGain(env, 0, ExpectedGainConfig(hidden=8))
    assert np.isfinite(agent.update()["charts/expected_gain"])
    observations, infos = env.reset(seed=0)
    chosen = agent.act(observations, infos["action_mask"].astype(bool))
    assert infos["action_mask"][np.arange(N), chosen].all()
