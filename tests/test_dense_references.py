"""References of the policy over all spans against slow, obvious implementations."""

import itertools

import numpy as np
import pytest
import torch
from test_dense import DIM, GRID, Rows, problem, slow_tiou

from vmr_env.agents.dense.references import (
    CURVES,
    OF_A_MODEL,
    SpanRanker,
    candidate_masks,
    candidates,
    evidence_alone,
    span_facts,
    vote_answers,
)
from vmr_env.agents.dense.spans import best_overlap
from vmr_env.agents.dense.timeline import Timelines
from vmr_env.data.annotations import Annotation
from vmr_env.data.predictions import Prediction
from vmr_env.data.timelines import CHANNELS, NoEvidence


def slow_candidates(proposals: list[list[tuple[float, float]]], clips: int) -> set[tuple[float, float]]:
    found = {window for model in proposals for window in model}
    for model in proposals:
        (start, end), moves = model[0], (0, 1, 2, 4, 8)
        for a, b, left, right in itertools.product(moves, moves, (-1, 1), (-1, 1)):
            moved = start + left * a, end + right * b
            found.add((min(max(moved[0], 0), clips), min(max(moved[1], 0), clips)))
    for one, other in itertools.product(proposals, proposals):
        found |= {(start, end) for (start, _), (_, end) in itertools.product(one[:5], other[:5])}
    return {(start, end) for start, end in found if start < end}


def test_candidates_are_proposals_moves_around_the_first_and_crossed_boundaries() -> None:
    rng = np.random.default_rng(0)
    for clips in (40, 25, 1):
        drawn = np.sort(rng.uniform(0, clips, size=(2, 7, 2)), axis=2)
        drawn[0, 3] = drawn[0, 3, 0]  # empty
        models = [np.column_stack([windows, np.full(7, 1 / 7)]) for windows in drawn]
        found = [tuple(window) for window in candidates(models, clips).tolist()]
        expected = slow_candidates([[tuple(w) for w in windows.tolist()] for windows in drawn], clips)
        assert len(found) == len(expected)
        assert set(found) == expected


def test_candidates_lie_on_the_nearest_clips() -> None:
    timelines = problem(6)
    rows = timelines.models[0]
    for prediction in rows:
        prediction.windows[:, :2] = (prediction.windows[:, :2] + [0.7, -0.9]).clip(min=0)
    again = Timelines([rows], timelines.annotations, NoEvidence(DIM), timelines._queries, GRID)
    masks = candidate_masks(again, range(6))
    for row, mask in enumerate(masks):
        count = int(again.clips[row])
        expected = set()
        for start, end in candidates(again.proposals[row], count).tolist():
            start = min(round(start), count - 1)
            expected.add((start, max(round(end), start + 1)))
        assert {tuple(span) for span in again.spans[mask].tolist()} == expected


def test_the_vote_of_a_pool_is_the_slow_sum_over_all_windows() -> None:
    one, other = problem(12, seed=1), problem(12, seed=5)
    second = [
        Prediction(mine.qid, mine.vid, "query", theirs.windows * [0.5, 0.5, 1])
        for mine, theirs in zip(one.models[0], other.models[0], strict=True)
    ]
    pool = Timelines([one.models[0], second], one.annotations, NoEvidence(DIM), one._queries, GRID)
    for row, answer in enumerate(vote_answers(pool)):
        windows = [model[row].windows / [2, 2, 1] for model in pool.models]
        proposals = [[tuple(window) for window in model[:, :2].tolist()] for model in windows]
        votes = {}
        for span in slow_candidates(proposals, int(pool.clips[row])):
            votes[span] = 0.0
            for model in windows:
                for low, high, score in model.tolist():
                    overlap = slow_tiou(span, (low, high))
                    soft = sum(1 / (1 + np.exp(-(overlap - t) / 0.05)) for t in (0.5, 0.7))
                    votes[span] += score / model[:, 2].sum() / 2 * (overlap + soft) / 3
        found = answer.windows / [2, 2, 1]
        assert found[0, 2] == pytest.approx(max(votes.values()), rel=1e-4)
        for start, end, vote in found.tolist():
            assert vote == pytest.approx(votes[start, end], rel=1e-4)
        for k, window in enumerate(found[1:], start=1):
            assert window[2] <= found[k - 1, 2]
            assert all(slow_tiou(window[:2], better[:2]) <= 0.6 + 1e-6 for better in found[:k])


def test_empty_proposals_get_no_vote() -> None:
    base = problem(2)
    windows = np.array([[4.0, 4.0, 0.9], [2.0, 6.0, 0.1]])
    rows = [Prediction(0, "video0", "query", windows), Prediction(1, "video1", "query", windows[:1])]
    answered = vote_answers(Timelines([rows], base.annotations, NoEvidence(DIM), base._queries, GRID))
    assert all((answer.windows[:, 0] < answer.windows[:, 1]).all() for answer in answered)
    assert answered[0].windows[0, :2].tolist() == [2, 6]


def test_evidence_alone_finds_what_differs_most_from_the_rest() -> None:
    timelines = problem(12)
    found = evidence_alone(timelines)
    for row in range(12):
        vector = timelines.query_vectors(row)[0]
        cosine = [float(c @ vector / np.linalg.norm(c)) for c in timelines.clip_vectors(row)]
        scores = (np.array(cosine) - np.mean(cosine)) / np.std(cosine)
        values = {}
        for start, end in itertools.combinations(range(len(scores) + 1), 2):
            within, rest = scores[start:end], np.concatenate([scores[:start], scores[end:]])
            values[start, end] = 0.0
            if len(rest):
                weight = np.sqrt(len(within) * len(rest) / len(scores))
                values[start, end] = (within.mean() - rest.mean()) * weight
        weights = [np.exp(values.get(tuple(span), -np.inf)) for span in timelines.spans.tolist()]
        np.testing.assert_allclose(found[row], np.array(weights) / sum(weights), rtol=2e-3, atol=1e-6)


def test_facts_of_a_span_are_the_means_and_steps_of_the_curves() -> None:
    timelines = problem(5)
    facts = span_facts(timelines, range(5)).numpy()
    batch = timelines.batch(range(5))
    columns = [CHANNELS.index(name) for name in CURVES]
    for row in range(5):
        count = int(timelines.clips[row])
        curves = batch.channels[row, :count, columns].numpy()
        padded = np.pad(curves, ((1, 1), (0, 0)))
        for (start, end), found in zip(timelines.spans.tolist(), facts[row], strict=True):
            if end > count or end - start == count:
                continue
            outside = np.concatenate([curves[:start], curves[end:]])
            expected = [
                *((end - start) / count, start / count, end / count),
                *curves[start:end].mean(axis=0),
                *outside.mean(axis=0),
                *padded[start + 1] - padded[start],
                *padded[end] - padded[end + 1],
            ]
            np.testing.assert_allclose(found[6:], expected, atol=1e-5)


def test_facts_of_a_pool_are_what_each_model_says() -> None:
    """Against plain Python over the windows and saliency of two models."""
    one, other = problem(4, seed=1), problem(4, seed=5)
    second = [
        Prediction(
            mine.qid,
            mine.vid,
            "query",
            theirs.windows * [0.5, 0.5, 1] + [0.6, 0.9, 0],
            np.arange(len(mine.saliency), dtype=np.float32) ** 2,
        )
        for mine, theirs in zip(one.models[0], other.models[0], strict=True)
    ]
    pool = Timelines([one.models[0], second], one.annotations, NoEvidence(DIM), one._queries, GRID)
    facts = span_facts(pool, range(4)).numpy()[..., 9 + 4 * len(CURVES) :]
    assert facts.shape[2] == 2 * OF_A_MODEL + 1
    for row, count in enumerate(pool.clips.tolist()):
        lists = [model[row].windows / [2, 2, 1] for model in pool.models]
        agreed = slow_tiou(*(tuple(np.clip(windows[0, :2], 0, count)) for windows in lists))
        for (start, end), found in zip(pool.spans.tolist(), facts[row], strict=True):
            if end > count or end - start == count:
                continue
            expected = []
            for model, windows in zip(pool.models, lists, strict=True):
                shares = windows[:, 2] / windows[:, 2].sum()
                overlaps = [slow_tiou((start, end), tuple(np.clip(w[:2], 0, count))) for w in windows]
                numbers = [[o, *(1 / (1 + np.exp(-(o - t) / 0.05)) for t in (0.5, 0.7))] for o in overlaps]
                for k in range(3):  # over all windows, then of the first
                    expected.append(sum(share * n[k] for share, n in zip(shares, numbers, strict=True)))
                expected += numbers[0]
                for side, at in ((0, start), (1, end)):
                    near = [max(0, 1 - abs(min(max(w[side], 0), count) - at)) for w in windows]
                    expected.append(sum(share * n for share, n in zip(shares, near, strict=True)))
                curve = np.array(model[row].saliency, float)
                curve = (curve - curve.mean()) / curve.std()
                beside = [0.0, *curve, 0.0]
                expected += [curve[start:end].mean(), np.delete(curve, range(start, end)).mean()]
                expected += [beside[start + 1] - beside[start], beside[end] - beside[end + 1]]
            np.testing.assert_allclose(found[:-1], expected, atol=1e-4)
            assert found[-1] == pytest.approx(agreed, abs=1e-5)


def test_the_ranker_learns_what_evidence_tells() -> None:
    pytest.importorskip("sklearn")
    gains = {}
    for told in (True, False):
        timelines = problem(220, told=told)
        held_out = list(range(160, 220))
        ranked = SpanRanker(timelines, range(160)).gains(timelines, held_out)
        beyond = timelines.spans[:, 1] > torch.from_numpy(timelines.clips[held_out])[:, None]
        assert bool(torch.equal(torch.isinf(ranked), beyond))
        overlaps = best_overlap(timelines.spans, timelines.moments(held_out))
        gains[told] = float(overlaps.gather(1, ranked.argmax(dim=1, keepdim=True)).mean())
    assert gains[True] > gains[False] + 0.2


def test_the_ranker_bears_videos_of_one_clip() -> None:
    pytest.importorskip("sklearn")
    annotations = [Annotation(i, "v", "query", 2.0, np.array([[0.0, 2.0]])) for i in range(3)]
    rows = [Prediction(i, "v", "query", np.array([[0.0, 2.0, 0.5]])) for i in range(3)]
    queries = {str(i): np.ones((1, DIM), np.float32) for i in range(3)}
    timelines = Timelines([rows], annotations, Rows({"v": np.ones((1, DIM), np.float32)}), queries, GRID)
    assert SpanRanker(timelines).gains(timelines)[:, 0].tolist() == pytest.approx([1.0] * 3)
    assert evidence_alone(timelines)[:, 0].tolist() == [1.0] * 3
