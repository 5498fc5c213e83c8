"""The gain of a policy against the quality of its evidence."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_dense import CONFIG, GRID, one_thread, problem

from vmr_env.agents.dense import DensePolicy, Evidence
from vmr_env.agents.dense.decoding import best_utility
from vmr_env.agents.dense.spans import best_overlap
from vmr_env.agents.dense.timeline import Draw, Timelines
from vmr_env.agents.dense.trainer import believe, train
from vmr_env.benchmarks.experiment.evidence_quality import SpoiltClips, curve, gated

__all__ = ["one_thread"]


class Named:
    dim = 1

    def read(self, key: str) -> np.ndarray:
        return np.array([[float(key)]], np.float32)


def test_a_larger_share_spoils_the_same_videos_and_more() -> None:
    videos = [str(i) for i in range(20)] * 2
    before: dict[str, str] = {}
    for share, count in ((0.0, 0), (0.25, 5), (0.5, 10), (1.0, 20)):
        clips = SpoiltClips(Named(), videos, share)
        assert len(clips.shown) == count
        assert before.items() <= clips.shown.items()
        before = clips.shown
        for video in set(videos):
            shown = clips.read(video)[0, 0]
            assert (shown != float(video)) == (video in clips.shown)
    assert sorted(before.values()) == sorted(set(videos))


def test_foreign_clips_are_as_many_as_the_video_has() -> None:
    class Long:
        dim = 1

        def read(self, key: str) -> np.ndarray:
            return np.arange(3 + 2 * int(key), dtype=np.float32)[:, None]

    spoilt = SpoiltClips(Long(), ["0", "1"], 1.0)
    np.testing.assert_array_equal(spoilt.read("0")[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(spoilt.read("1")[:, 0], [0, 1, 2, 0, 1])


def test_the_gate_of_a_half_is_decided_by_the_other() -> None:
    halves = np.array([0, 0, 1, 1])
    columns = ["R1@0.5", "R1@0.7", "mIoU"]
    blind = pd.DataFrame(np.full((4, 3), 50.0), columns=columns)
    seen = pd.DataFrame(np.repeat([[60.0], [60.0], [40.0], [40.0]], 3, axis=1), columns=columns)
    # Evidence helps half 0, so half 1 takes it and loses; it harms half 1, so half 0 leaves it.
    assert gated(seen, blind, halves)["mIoU"].tolist() == [50, 50, 40, 40]
    assert gated(seen + 20, blind, halves)["mIoU"].tolist() == [80, 80, 60, 60]
    assert gated(seen - 20, blind, halves)["mIoU"].tolist() == [50] * 4


def test_a_share_of_the_samples_shows_another_video() -> None:
    draw = Draw(np.random.default_rng(0), 0, 0.0, 0.4)
    shown = [draw.video(7, 100) for _ in range(2000)]
    assert np.mean([row != 7 for row in shown]) == pytest.approx(0.4, abs=0.04)
    assert len(set(shown)) > 90
    timelines = problem(30)
    batch = timelines.batch([3] * 40, Draw(np.random.default_rng(0), 0, 0.0, 0.5))
    count = int(timelines.clips[3])
    own = timelines.clip_vectors(3)
    same = [np.array_equal(clips[:count], own) for clips in batch.clips.numpy()]
    assert 10 < sum(same) < 30
    assert not batch.clips[:, count:].any()


def test_who_has_seen_foreign_clips_in_training_trusts_evidence_less_blindly() -> None:
    timelines = problem(220)
    held_out = list(range(160, 220))
    rows = {vid: timelines._features.read(f"video{(i + 1) % 220}") for i, vid in enumerate(videos(timelines))}

    class Foreign:
        dim = timelines.dim

        def read(self, key: str) -> np.ndarray:
            return rows[key]

    # A detector that knows: its first window is the moment.
    models = [
        [
            replace(row, windows=np.column_stack([annotation.moments[:1], [[1.0]]]))
            for row, annotation in zip(timelines.models[0], timelines.annotations, strict=True)
        ]
    ]
    good = Timelines(models, timelines.annotations, timelines._features, timelines._queries, GRID)
    spoilt = Timelines(models, timelines.annotations, Foreign(), timelines._queries, GRID)
    overlaps = best_overlap(spoilt.spans, spoilt.moments(held_out))
    probabilities = []
    for share in (0.0, 0.3):
        network = train(good, 0, replace(CONFIG, foreign_evidence=share), rows=range(160))
        belief = believe([network], spoilt, held_out).probabilities
        probabilities.append(float((belief * (overlaps > 0.99)).sum(dim=1).mean()))
        found = overlaps.gather(1, best_utility(spoilt, belief)[:, None])
        assert float(found.mean()) > 0.9
    assert probabilities[1] > probabilities[0]


def videos(timelines: Timelines) -> list[str]:
    return [row.vid for row in timelines.annotations]


def test_the_curve_falls_with_the_evidence() -> None:
    timelines = problem(120)
    network = train(timelines, 0, CONFIG)
    policy = DensePolicy((network,), GRID, CONFIG.channels)
    evidence = Evidence(timelines._features, timelines._queries)
    found = curve(policy, timelines.models, timelines.annotations, evidence, [0.0, 1.0], "qvhighlights")
    assert set(found) >= {"without evidence", "evidence, 0% spoilt", "gated, 100% spoilt"}
    seen = [found[f"evidence, {share} spoilt"]["mIoU"].mean for share in ("0%", "100%")]
    blind = found["without evidence"]["mIoU"].mean
    assert seen[0] > blind + 10
    assert seen[1] < seen[0] - 10
    assert found["gated, 0% spoilt"]["mIoU"].mean == pytest.approx(seen[0])
    if seen[1] < blind - 3:
        assert found["gated, 100% spoilt"]["mIoU"].mean == pytest.approx(blind)
