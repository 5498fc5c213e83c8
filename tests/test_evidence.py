"""Evidence in caches: its tables by a slow definition, what environments show, and where it comes from."""

import json
import pickle
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caches import ARGUMENTS, random_batch
from click.testing import CliRunner
from refinement import environment, user_cache_in

from vmr_env.agents.networks import RefinementNetwork
from vmr_env.backbones.evidence import on_grid
from vmr_env.backbones.features.store import FeatureStoreWriter
from vmr_env.benchmarks.cli.main import main
from vmr_env.caches.evidence import LOG_SCALE
from vmr_env.caches.format import MOST_CELLS, Ragged, cells_of, merged, spans_of
from vmr_env.caches.reader import DecoderStateCache, write_cache
from vmr_env.envs import memory
from vmr_env.envs.evidence import EvidenceRows, evidence_bytes, evidence_of
from vmr_env.envs.memory import Memory
from vmr_env.errors import DataError

N = 12
LONG = 200
"""Clips of the first video, too many for a cell each."""


def batch_with_evidence(scored: bool) -> Any:
    rng = np.random.default_rng(5)
    batch = random_batch(N, q=4)
    durations = batch.durations.copy()
    durations[0] = LONG - 0.5
    n_clips = np.ceil(durations).astype(np.int32)
    curves = [rng.normal(size=n).astype(np.float32) for n in n_clips]
    spans = spans_of(cells_of(n_clips))
    scores = [rng.normal(size=n).astype(np.float32) for n in spans]
    return replace(
        batch,
        durations=durations,
        n_clips=n_clips,
        saliency=None,
        relevance=Ragged.from_rows(curves),
        span_scores=Ragged.from_rows(scores) if scored else None,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["scored", "curve alone"])
def cache(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderStateCache]:
    with user_cache_in(tmp_path_factory.mktemp("evidence")) as folder:
        yield DecoderStateCache.open(
            write_cache(folder / "cache", batch_with_evidence(request.param), **ARGUMENTS), checksums=True
        )


def curve_of(cache: DecoderStateCache, sample: int) -> list[float]:
    """The relevance in each cell."""
    assert cache.relevance is not None
    curve = cache.relevance[sample].astype(float)
    width = -(-len(curve) // MOST_CELLS)
    return [float(curve[low : low + width].mean()) for low in range(0, len(curve), width)]


def distribution(cache: DecoderStateCache, sample: int) -> dict[tuple[int, int], float]:
    """Log-probability of every span, from cell boundary to cell boundary."""
    curve = curve_of(cache, sample)
    spans = [(i, j) for i in range(len(curve)) for j in range(i + 1, len(curve) + 1)]
    if cache.span_scores is not None:
        scores = cache.span_scores[sample].astype(float)
    else:
        whole = np.sum((curve - np.mean(curve)) ** 2)
        scores = np.zeros(len(spans))
        for k, (i, j) in enumerate(spans):
            inside, outside = curve[i:j], curve[:i] + curve[j:]
            if outside:
                apart = sum(np.sum((part - np.mean(part)) ** 2) for part in (inside, outside))
                ratio = (whole - apart) / (2 * np.var(curve))
                scores[k] = np.sign(np.mean(inside) - np.mean(outside)) * ratio
    log_sum = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
    return dict(zip(spans, (scores - log_sum).tolist(), strict=True))


def tiou(a: tuple[int, int], b: tuple[int, int]) -> float:
    common = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return common / (a[1] - a[0] + b[1] - b[0] - common)


def expected(
    cache: DecoderStateCache, sample: int, span: tuple[float, float]
) -> tuple[list[float], list[float]]:
    """`RELEVANCE` and `SPAN_EVIDENCE` of a span by their definitions."""
    logs, curve = distribution(cache, sample), np.array(curve_of(cache, sample))
    cells, z = len(curve), np.tanh((curve - curve.mean()) / curve.std() / 2)
    first = min(int(np.rint(np.float32(span[0]) * cells)), cells - 1)
    last = max(int(np.rint(np.float32(span[1]) * cells)), first + 1)
    here = first, last

    def mean(low: int, high: int) -> float:
        part = z[max(low, 0) : min(high, cells)]
        return float(part.mean()) if len(part) else 0.0

    near = [mean(at + low, at + high) for at in here for low, high in ((-2, 0), (0, 2))]
    chances = {other: np.exp(log) for other, log in logs.items()}
    ends: list[float] = []
    for side in (0, 1):
        by_boundary = [
            sum(chance for other, chance in chances.items() if other[side] == at) for at in range(cells + 1)
        ]
        ends.append(by_boundary[here[side]] / max(by_boundary))
    overlaps = {other: tiou(here, other) for other in chances}
    entropy = -sum(chances[other] * logs[other] for other in chances) / max(np.log(len(chances)), 1)
    said = [
        max((logs[here] - max(logs.values())) / LOG_SCALE, -1),
        sum(chances[other] * overlap for other, overlap in overlaps.items()),
        *(sum(chances[o] for o, overlap in overlaps.items() if overlap >= t - 1e-9) for t in (0.5, 0.7)),
        *ends,
        entropy,
    ]
    return [mean(*here), *near], said


def found(cache: DecoderStateCache) -> EvidenceRows:
    """Tables of all samples."""
    evidence = Memory(cache, evidence_of(cache), 1)
    assert evidence.shared
    evidence.hold(np.zeros(len(cache), int), np.arange(len(cache)))
    rows: EvidenceRows = evidence.rows
    return rows


def log_scores(rows: EvidenceRows, sample: int) -> dict[tuple[int, int], float]:
    """The first of `SPAN_EVIDENCE` of every span, from boundary to boundary."""
    cells, first = int(rows.cells[sample]), int(rows.span_firsts[sample])
    spans = [(i, i + length) for length in range(1, cells + 1) for i in range(cells - length + 1)]
    steps = rows.spans[first : first + len(spans), 0].tolist()
    return {span: -step / 65535 for span, step in zip(spans, steps, strict=True)}


@pytest.mark.parametrize("threads", [1, 2])
def test_an_episodes_own_evidence_is_the_shared_one(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    def observed() -> list[Any]:
        env = environment(cache, threads=threads)
        actions = np.random.default_rng(0).integers(0, env.single_action_space.n, (20, env.num_envs))
        return [env.reset(seed=3)[0], *(env.step(action)[0] for action in actions)]

    shared = observed()
    size = evidence_bytes(cells_of(cache.n_clips))
    monkeypatch.setattr(memory, "SHARED_BYTES", size)
    assert Memory(cache, evidence_of(cache), 1).shared
    monkeypatch.setattr(memory, "SHARED_BYTES", size - 1)
    assert not Memory(cache, evidence_of(cache), 1).shared
    np.testing.assert_array_equal(observed(), shared)


@pytest.mark.parametrize("shared", [True, False])
def test_a_pickle_holds_no_evidence_and_goes_on_alike_in_another_process(
    cache: DecoderStateCache, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    if not shared:
        monkeypatch.setattr(memory, "SHARED_BYTES", 0)
    env = environment(cache, n=5, horizon=4, components=["span", "relevance", "span_evidence"])
    env.reset(seed=1)
    packed = pickle.dumps(env)
    assert env.episodes._groups[0].tables.points.tobytes() not in packed
    monkeypatch.setattr(memory, "_SHARED", weakref.WeakKeyDictionary())
    twin = pickle.loads(packed)
    for action in (0, 20, 41, 9, 3):
        actions = np.full(5, action)
        np.testing.assert_array_equal(twin.step(actions)[0], env.step(actions)[0])


def test_tables_take_the_memory_that_is_foretold(cache: DecoderStateCache) -> None:
    """And of no sample more than of one with as many cells as there may be."""
    evidence = evidence_of(cache)
    rows = evidence.empty(len(cache), True)
    arrays = (rows.spans, rows.points, rows.entropies, rows.span_firsts, rows.point_firsts)
    assert evidence.size == sum(array.nbytes for array in arrays)
    assert evidence_bytes(np.array([MOST_CELLS])) == 24_340
    for clips in (1, 2, 30, 75, 76, 10**6):
        assert evidence_bytes(cells_of(np.array([clips]))) <= 24_340


def test_nothing_is_kept_on_disk(cache: DecoderStateCache) -> None:
    environment(cache).reset(seed=0)
    assert {path.parent for path in cache.path.parent.rglob("*.npy")} == {cache.path}


@pytest.mark.parametrize("actions", ["discrete", "multidiscrete", "continuous"])
def test_environments_show_the_evidence_of_the_span_that_each_action_leads_to(
    cache: DecoderStateCache, actions: str
) -> None:
    env = environment(cache, n=N, actions=actions, components=["relevance", "span_evidence"])
    env.reset(seed=0, options={"sample": np.arange(N)})
    parts = env.observer.split(env.episodes.observe())
    episodes, rng, looked_at = env.episodes, np.random.default_rng(0), 0
    assert parts["relevance"].shape[1] == parts["span_evidence"].shape[1] == episodes.mask.shape[1]
    for i in range(N):
        clip = np.float32(1) / cache.durations[int(episodes.samples[i])]
        for action in rng.permutation(episodes.mask.shape[1])[:4].tolist():
            relevance, said = (parts[name][i, action] for name in ("relevance", "span_evidence"))
            if not episodes.mask[i, action]:
                assert not relevance.any()
                assert not said.any()
                continue
            kind, first, second = env.action_mode.choices[action].tolist()
            span = episodes.spans[i].copy()
            if kind == 0:
                shifts = env.action_mode.offsets[0][[first, second]] * clip
                span = np.clip(span + shifts, 0, 1)
            elif kind == 1:
                span = cache.spans[episodes.samples[i], first]
            wanted = expected(cache, int(episodes.samples[i]), (span[0], span[1]))
            np.testing.assert_allclose(relevance, wanted[0], atol=1e-5)
            np.testing.assert_allclose(said, wanted[1], atol=1e-5)  # steps of 1 / 65535
            looked_at += 1
    assert looked_at > N


def test_values_lie_within_the_bounds(cache: DecoderStateCache) -> None:
    env = environment(cache)
    for step in range(5):
        observations = env.reset(seed=step)[0]
        assert {"relevance", "span_evidence"} <= set(env.observer.shapes)
        assert all(env.single_observation_space.contains(row) for row in observations)


def test_our_network_sees_evidence(cache: DecoderStateCache) -> None:
    torch.manual_seed(0)
    env = environment(cache, n=N)
    env.reset(seed=0)
    observations, masks = (torch.from_numpy(of.copy()) for of in (env.episodes.observe(), env.episodes.mask))
    network = RefinementNetwork(env.observer, 16)
    network.fit(observations)
    before = network(observations, masks).logits
    for name in ("relevance", "span_evidence"):
        changed = observations.clone()
        part = changed[:, env.observer.slices[name]].unflatten(1, env.observer.shapes[name])
        part[:, 3] += 1
        changed[:, env.observer.slices[name]] = part.flatten(1)
        differs = (network(changed, masks).logits != before) & masks
        assert torch.equal(differs, masks & (torch.arange(masks.shape[1]) == 3))


def with_curves(folder: Path, curves: list[list[float]]) -> DecoderStateCache:
    batch = random_batch(len(curves))
    clips = np.array([len(curve) for curve in curves], np.int32)
    moments = Ragged.from_rows([[[0.0, clips]] for clips in clips])
    relevance = Ragged.from_rows([np.array(curve, np.float32) for curve in curves])
    batch = replace(batch, durations=clips.astype(float), n_clips=clips, moments=moments, saliency=None)
    return DecoderStateCache.open(write_cache(folder, replace(batch, relevance=relevance), **ARGUMENTS))


def test_a_step_in_the_curve_is_the_best_span(tmp_path: Path) -> None:
    scores = log_scores(found(with_curves(tmp_path / "c", [[0.0, 0.1, 0, 1, 0.9, 1, 0, 0.1]])), 0)
    assert max(scores, key=scores.__getitem__) == (3, 6)


def test_a_flat_curve_and_a_video_of_one_clip_tell_nothing(tmp_path: Path) -> None:
    rows = found(with_curves(tmp_path / "c", [[0.25] * 6, [0.7]]))
    assert not rows.spans[:, 0].any()
    assert not rows.points[:, :3].any()
    np.testing.assert_allclose(rows.entropies, [1, 0], atol=1e-6)
    one = rows.spans[rows.span_firsts[1]]
    np.testing.assert_array_equal(one[1:], 65535)  # the only span has a tIoU of 1 with itself


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 7, 20, MOST_CELLS])
def test_all_spans_are_compared_with_all(tmp_path: Path, cells: int) -> None:
    curve = np.random.default_rng(cells).normal(size=cells).tolist()
    cache = with_curves(tmp_path / "c", [curve])
    rows, logs = found(cache), distribution(cache, 0)
    spans = [(i, i + length) for length in range(1, cells + 1) for i in range(cells - length + 1)]
    low, high = np.array(spans).T
    common = np.maximum(np.minimum(high[:, None], high) - np.maximum(low[:, None], low), 0)
    union = (high - low)[:, None] + (high - low) - common
    chances = np.exp([logs[span] for span in spans])
    wanted = [
        (common / union) @ chances,
        (2 * common >= union) @ chances,
        (10 * common >= 7 * union) @ chances,
    ]
    np.testing.assert_allclose(rows.spans[:, 1:].T / 65535, wanted, atol=1e-5)


def test_backbones_scores_are_those_of_the_spans_of_the_grid() -> None:
    clips = 160  # 54 cells of 3, the last of 1
    logits = torch.arange(clips * clips, dtype=torch.float32).reshape(clips, clips)
    found = on_grid(logits, np.arange(clips))
    wanted = [logits[i * 3, min(j * 3 + 2, clips - 1)].item() for i in range(54) for j in range(i, 54)]
    assert int(merged(np.array(clips))) == 3
    np.testing.assert_array_equal(found, wanted)


def test_scores_of_another_number_of_spans_are_refused(tmp_path: Path) -> None:
    batch = batch_with_evidence(True)
    short = Ragged.from_rows([batch.span_scores[i][: 3 if i == 2 else None] for i in range(N)])
    with pytest.raises(DataError, match=r"row 3, span_scores: 3, expected one value per span of the grid"):
        write_cache(tmp_path / "cache", replace(batch, span_scores=short), **ARGUMENTS)
    with pytest.raises(DataError, match="relevance: is missing"):
        write_cache(tmp_path / "cache", replace(batch, relevance=None), **ARGUMENTS)


@pytest.mark.parametrize("name", ["relevance", "span_scores"])
def test_an_environment_refuses_a_damaged_copy_but_not_the_cache(tmp_path: Path, name: str) -> None:
    good = write_cache(tmp_path / "good", batch_with_evidence(True), **ARGUMENTS)
    shutil.copytree(good, tmp_path / "damaged")
    path = tmp_path / "damaged" / f"{name}.values.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{name}\.values\.npy: has sha256"):
        environment(DecoderStateCache.open(tmp_path / "damaged"))
    environment(DecoderStateCache.open(good))


def test_evidence_is_verified(cache: DecoderStateCache) -> None:
    cache.verify()


# From features


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Predictions of two queries of one video, whose clips 4 to 7 look like the first query."""
    rows = [
        {"qid": qid, "vid": "v", "query": "door", "duration": 20.0, "relevant_windows": [[8, 16]]}
        for qid in (1, 2)
    ]
    told = [{**row, "pred_relevant_windows": [[2, 6, 0.9], [8, 14, 0.5]]} for row in rows]
    for row in told:
        row.pop("relevant_windows")
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("annotations", "predictions")}
    paths["annotations"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths["predictions"].write_text("".join(json.dumps(row) + "\n" for row in told))
    clips = np.tile(np.array([1.0, 0, 0], np.float32), (11, 1))  # one more than the video has
    clips[4:8] = [0.1, 2, 0]
    for name, arrays in {
        "clips": {"v": clips},
        "text": {"1": np.array([[0, 3, 0], [0, 1, 0]]), "2": np.array([[0, 0, 1.0]])},
    }.items():
        paths[name] = tmp_path / name
        with FeatureStoreWriter(paths[name], source="real", origin={"features": "made up"}) as store:
            for key, array in arrays.items():
                store.add(key, array.astype(np.float32))
    return paths


def predictions_cache(files: dict[str, Path], out: Path, *options: str) -> Any:
    given = ["cache", "predictions", str(files["predictions"]), "--annotations", str(files["annotations"])]
    return CliRunner().invoke(
        main, [*given, "--dataset", "qvhighlights", "--split", "val", "--out", str(out), *options]
    )


def test_cosines_need_features_alone(files: dict[str, Path], tmp_path: Path) -> None:
    options = ["--clips", str(files["clips"]), "--text", str(files["text"])]
    done = predictions_cache(files, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    with user_cache_in(tmp_path):
        cache = DecoderStateCache.open(tmp_path / "out", checksums=True)
        cache.verify()
        assert cache.manifest["notes"]["evidence"] == {"source": "cosine", "sha256": None}
        assert cache.manifest["features"] == ["made up"]
        assert cache.relevance is not None
        alike = 2 / np.sqrt(4.01)
        np.testing.assert_allclose(cache.relevance[0], [0] * 4 + [alike] * 4 + [0] * 2, atol=1e-3)
        assert not cache.relevance[1].any()
        scores = log_scores(found(cache), 0)
        assert max(scores, key=scores.__getitem__) == (4, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clips", "clips"], "--text: is missing; evidence needs --clips and --text"),
        (["--text", "text"], "--clips: is missing; evidence needs --clips and --text"),
        (["--evidence", "clips"], "--clips: is missing; evidence needs --clips and --text"),
        (["--clips", "clips", "--text", "clips"], "has no features for '1'"),
    ],
)
def test_what_is_missing_is_one_line(
    files: dict[str, Path], tmp_path: Path, options: list[str], message: str
) -> None:
    named = [str(files[word]) if word in files else word for word in options]
    done = predictions_cache(files, tmp_path / "out", *named)
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert not (tmp_path / "out").exists()
