"""Refined answers to queries without ground truth: what a run submitted for them, bit for bit."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import vmr_env
from vmr_env.agents import refinement
from vmr_env.agents.dense import DensePolicy, Evidence, refine_rows, save_policy
from vmr_env.agents.dense.network import DenseNetwork
from vmr_env.agents.ensemble.cross_fitting import CrossFit, CrossFittedEnsemble, training_environment
from vmr_env.agents.ensemble.files import load_ensemble, save_ensemble
from vmr_env.agents.evaluation import refine as run_episodes
from vmr_env.agents.evaluation import submission
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.agents.tensors import read_tensors, write_tensors
from vmr_env.backbones.features.store import FeatureStore, FeatureStoreWriter
from vmr_env.benchmarks.cli.main import main
from vmr_env.benchmarks.experiment import dense
from vmr_env.caches.from_predictions import build_prediction_cache
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.predictions import Prediction, read_predictions, write_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.data.timelines import Grid, NoEvidence
from vmr_env.errors import DataError, DataWarning

ROWS = 23
DIM = 12


class Small(ExpectedGain):
    num_envs = 4
    rounds = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: predictions, queries with and without ground truth, an agent that learnt from them."""
    folder = tmp_path_factory.mktemp("refinement")
    rng = np.random.default_rng(0)
    truth, rows = [], []
    for i in range(ROWS):
        query = {"qid": i, "vid": f"v{i // 2}", "query": "a person runs", "duration": 30.0 + i}
        truth.append(query | {"relevant_windows": [[float(i % 7), 12.0 + i % 5]]})
        count = int(rng.integers(1, 9))
        windows = np.sort(rng.uniform(0, 30, (count, 2)).round(2), axis=1)
        scores = np.sort(rng.random(count).round(4))[::-1]
        rows.append(Prediction(i, f"v{i // 2}", "a person runs", np.column_stack([windows, scores])))
    write_predictions(folder / "predictions.jsonl", rows[::-1])  # in another order than the queries
    for name, fields in (("truth", {"relevant_windows"}), ("queries", set())):
        lines = [
            json.dumps({key: value for key, value in row.items() if key != "relevant_windows" or fields})
            for row in truth
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    cache = DecoderStateCache.open(
        build_prediction_cache(
            folder / "cache",
            folder / "predictions.jsonl",
            folder / "truth.jsonl",
            get_profile("charades"),
            "train",
            max_proposals=10,
        )
    )
    ensemble, _ = CrossFit(
        Small, cache, np.arange(ROWS), members=2, evaluations=1, seed=0, options=Small.env_options
    ).fit()
    kept = ensemble.members or [Small(ensemble_env(cache), 0)]
    save_ensemble(
        folder / "agent.safetensors", CrossFittedEnsemble(kept, Small.env_options), cache, {"seed": 0}
    )
    return folder


def test_queries_without_moments_among_others_are_left_out_of_training(made: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (made / "truth.jsonl").read_text().splitlines()]
    for row in rows[:4]:
        del row["relevant_windows"]
    rows[4]["relevant_windows"] = None
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = made / "predictions.jsonl", tmp_path / "some.jsonl"
    with pytest.warns(DataWarning, match="5 of 23 rows have no relevant_windows and are left out"):
        cache = build_prediction_cache(tmp_path / "cache", *files, get_profile("charades"), "train")
    opened = DecoderStateCache.open(cache)
    assert [opened.sample(i).qid for i in range(len(opened))] == list(range(5, ROWS))


def ensemble_env(cache: DecoderStateCache) -> Any:
    return training_environment(Small, cache, np.arange(ROWS), Small.env_options)


def expected(made: Path) -> list[Prediction]:
    """What the agent answers in the environments of the cache with ground truth, by qid."""
    cache = DecoderStateCache.open(made / "cache")
    ensemble = load_ensemble(made / "agent.safetensors", cache)
    return submission(cache, run_episodes(ensemble.act, cache, np.arange(ROWS), ensemble.options))


@pytest.mark.parametrize("batch", [1024, 5])
def test_refined_answers_are_those_of_the_environments_in_the_order_given(
    made: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "BATCH", batch)
    refined = vmr_env.refine(
        made / "predictions.jsonl", made / "queries.jsonl", agent=made / "agent.safetensors"
    )
    given = read_predictions(made / "predictions.jsonl")
    assert [row.qid for row in refined] == [row.qid for row in given]
    by_qid = {row.qid: row for row in expected(made)}
    for row in refined:
        np.testing.assert_array_equal(row.windows, by_qid[row.qid].windows)
    assert any(not np.array_equal(a.windows, b.windows) for a, b in zip(refined, given, strict=True))


def test_moments_of_an_annotation_file_are_not_looked_at(made: Path) -> None:
    files = made / "predictions.jsonl", made / "agent.safetensors"
    bare = vmr_env.refine(files[0], made / "queries.jsonl", agent=files[1])
    annotated = vmr_env.refine(files[0], made / "truth.jsonl", agent=files[1])
    for one, other in zip(bare, annotated, strict=True):
        np.testing.assert_array_equal(one.windows, other.windows)


def test_the_command_writes_the_result_and_where_it_came_from(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "refined.jsonl"
    files = [str(made / "predictions.jsonl"), str(made / "queries.jsonl")]
    shown = CliRunner().invoke(
        main, ["refine", *files, "--agent", str(made / "agent.safetensors"), "--out", str(out)]
    )
    assert shown.exit_code == 0, shown.output
    told = re.fullmatch(
        rf"(\d+) of {ROWS} predictions have another first window: .*\n(.*)", shown.output, re.DOTALL
    )
    assert told is not None
    moved, said = told.groups()
    written = read_predictions(out)
    again = vmr_env.refine(*files, agent=made / "agent.safetensors")
    for one, other in zip(written, again, strict=True):
        np.testing.assert_array_equal(one.windows, other.windows)
    provenance = json.loads((tmp_path / "refined.jsonl.provenance.json").read_text())
    assert (provenance["refined"], provenance["moved"]) == (ROWS, int(moved))
    assert said == ""  # this ensemble was chosen
    assert provenance["agent"]["run"]["dataset"] == "charades"
    assert len(provenance["predictions"]["sha256"]) == len(provenance["agent"]["sha256"]) == 64


def test_an_ensemble_that_fell_back_says_so(made: Path, tmp_path: Path) -> None:
    header, tensors = read_tensors(made / "agent.safetensors", "ensemble")
    content = json.loads(header["ensemble"])
    content["run"]["chosen"] = 0
    write_tensors(tmp_path / "kept.safetensors", tensors, {"ensemble": json.dumps(content)})
    files = [str(made / "predictions.jsonl"), str(made / "queries.jsonl")]
    agent, out = str(tmp_path / "kept.safetensors"), str(tmp_path / "out.jsonl")
    shown = CliRunner().invoke(main, ["refine", *files, "--agent", agent, "--out", out])
    assert "fell back to the detector when it was trained" in shown.output


def test_problems_of_a_file_are_told_by_its_own_name(made: Path, tmp_path: Path) -> None:
    """Not by that of the temporary one that a batch is built from."""
    rows = read_predictions(made / "predictions.jsonl")
    short = [replace(row, saliency=np.zeros(1, np.float32)) for row in rows]
    write_predictions(tmp_path / "short.jsonl", short)
    with pytest.raises(DataError, match=r"short.jsonl, pred_saliency_scores: .* expected") as caught:
        vmr_env.refine(tmp_path / "short.jsonl", made / "queries.jsonl", agent=made / "agent.safetensors")
    assert "vmr-env-refine" not in str(caught.value)


def test_predictions_for_no_query_and_of_other_videos_are_told(made: Path) -> None:
    row = {"qid": 99, "vid": "v0", "query": "q", "pred_relevant_windows": [[0, 5, 0.5]]}
    with pytest.raises(DataError, match=r"qid: is 99; expected a query of .*queries.jsonl"):
        vmr_env.refine([row], made / "queries.jsonl", agent=made / "agent.safetensors")
    with pytest.raises(DataError, match="vid: is 'v9'; expected 'v0' for qid 0"):
        vmr_env.refine(
            [row | {"qid": 0, "vid": "v9"}], made / "queries.jsonl", agent=made / "agent.safetensors"
        )


def test_caches_without_ground_truth_are_refused_by_what_needs_it(made: Path, tmp_path: Path) -> None:
    cache = build_prediction_cache(
        tmp_path / "cache",
        made / "predictions.jsonl",
        made / "queries.jsonl",
        get_profile("charades"),
        "train",
        labelled=False,
    )
    DecoderStateCache.open(cache).verify()
    with pytest.raises(DataError, match="has no ground truth; expected some"):
        vmr_env.VMREnv("charades", source=cache)
    with pytest.raises(DataError, match="has no ground truth; expected some"):
        CrossFit(
            Small,
            DecoderStateCache.open(cache),
            np.arange(ROWS),
            members=2,
            evaluations=1,
            seed=0,
            options={},
        ).fit()
    with pytest.raises(DataError, match="relevant_windows: is in none of the 23 rows"):
        vmr_env.evaluate(made / "predictions.jsonl", made / "queries.jsonl")


def test_an_ensemble_of_a_pool_refines_the_files_of_a_pool(made: Path, tmp_path: Path) -> None:
    rows = read_predictions(made / "predictions.jsonl")
    other = [replace(row, windows=row.windows * [0.9, 0.9, 1]) for row in rows[::-1]]
    write_predictions(tmp_path / "other.jsonl", other)
    files = [made / "predictions.jsonl", tmp_path / "other.jsonl"]
    cache = DecoderStateCache.open(
        build_prediction_cache(
            tmp_path / "cache", files, made / "truth.jsonl", get_profile("charades"), "train"
        )
    )
    learner = Small(training_environment(Small, cache, np.arange(ROWS), Small.env_options), 0)
    learner.update()
    ensemble = CrossFittedEnsemble([learner], Small.env_options)
    save_ensemble(tmp_path / "agent.safetensors", ensemble, cache, {"seed": 0})
    refined = vmr_env.refine(files, made / "queries.jsonl", agent=tmp_path / "agent.safetensors")
    episodes = run_episodes(ensemble.act, cache, np.arange(ROWS), ensemble.options)
    by_qid = {row.qid: row for row in submission(cache, episodes)}
    assert [row.qid for row in refined] == [row.qid for row in rows]
    for row in refined:
        np.testing.assert_array_equal(row.windows, by_qid[row.qid].windows)


def test_the_vote_of_a_pool_needs_no_training(made: Path, tmp_path: Path) -> None:
    # Two of three files agree on [10, 20]; the third, first given, says [0, 5].
    said = {"one": [0.0, 5.0, 0.9], "two": [10.0, 20.0, 0.5], "three": [10.0, 20.0, 0.4]}
    asked = [{"qid": 0, "vid": "v", "query": "q", "duration": 30.0}]
    for name, window in said.items():
        write_predictions(tmp_path / f"{name}.jsonl", [Prediction(0, "v", "q", np.array([window]))])
    files = [tmp_path / f"{name}.jsonl" for name in said]
    (row,) = vmr_env.refine(files, asked, agent="vote", out=tmp_path / "out.jsonl")
    np.testing.assert_allclose(row.windows[0, :2], [10.0, 20.0])
    provenance = json.loads((tmp_path / "out.jsonl.provenance.json").read_text())
    assert provenance["agent"] == {"name": "vote"}
    assert [one["file"] for one in provenance["predictions"]] == [path.name for path in files]


def test_a_policy_over_all_spans_refines_by_the_command(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    lengths = {f"v{i}": 15 + i for i in range(ROWS)}  # clips of 2 s; of two queries, of 30 + 2 i seconds
    features = {vid: rng.normal(size=(n, DIM)).astype(np.float32) for vid, n in lengths.items()}
    with FeatureStoreWriter(tmp_path / "clips", source="real", origin={}) as writer:
        for vid, rows in features.items():
            writer.add(vid, rows)
    sentences = {str(i): rng.normal(size=(1 + i % 3, DIM)).astype(np.float32) for i in range(ROWS)}
    words = tmp_path / "rephrased.jsonl"
    words.write_text("")

    def encode(queries: Sequence[object], paraphrases: Sequence[Path], model: str | None) -> dict:
        assert (list(paraphrases), model) == ([words], None)
        return sentences

    monkeypatch.setattr(dense, "encode_queries", encode)
    torch.manual_seed(0)
    policy = DensePolicy((DenseNetwork(DIM, Grid().clips, 16),), Grid(), 16)
    save_policy(tmp_path / "policy", policy)
    monkeypatch.setattr(refinement, "BATCH", 7)
    files = [str(made / "predictions.jsonl"), str(made / "queries.jsonl")]
    command = ["refine", *files, "--agent", str(tmp_path / "policy"), "--out", str(tmp_path / "out.jsonl")]
    given = ["--clips", str(tmp_path / "clips"), "--paraphrases", str(words)]
    alone = CliRunner().invoke(main, [*command, *given[2:]])
    assert (alone.exit_code, "--paraphrases is read beside --clips" in alone.output) == (2, True)
    shown = CliRunner().invoke(main, [*command, *given])
    assert shown.exit_code == 0, shown.output
    written = read_predictions(tmp_path / "out.jsonl")
    stores = Evidence(FeatureStore(tmp_path / "clips"), sentences)
    whole = {
        row.qid: row
        for row in refine_rows(policy, made / "queries.jsonl", [made / "predictions.jsonl"], stores)
    }
    assert [row.qid for row in written] == [row.qid for row in read_predictions(files[0])]
    for row in written:
        np.testing.assert_allclose(row.windows, whole[row.qid].windows, atol=1e-5)


def test_windows_that_are_not_by_score_are_told_and_sorted_on_request(made: Path) -> None:
    rows = read_predictions(made / "predictions.jsonl")
    turned = [replace(row, windows=row.windows[::-1]) for row in rows]
    queries = made / "queries.jsonl"
    expected = vmr_env.refine(rows, queries, agent=made / "agent.safetensors")
    with pytest.warns(DataWarning, match=r"rows are not by falling score"):
        told = vmr_env.refine(turned, queries, agent=made / "agent.safetensors")
    sorted_ = vmr_env.refine(turned, queries, agent=made / "agent.safetensors", sort=True)
    for got, want in zip(sorted_, expected, strict=True):
        np.testing.assert_array_equal(got.windows, want.windows)
    assert [row.windows.tolist() for row in told] != [row.windows.tolist() for row in expected]


def test_the_place_of_the_result_is_tried_first(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        vmr_env.refine(
            made / "predictions.jsonl",
            made / "queries.jsonl",
            agent="x",
            out=tmp_path / "no" / "out.jsonl",
        )


def test_what_does_not_fit_together_is_told(made: Path, tmp_path: Path) -> None:
    evidence = Evidence(NoEvidence(3), {})
    for agent in ("vote", made / "agent.safetensors"):
        with pytest.raises(DataError, match=r"evidence: is given, and .* reads none"):
            vmr_env.refine(made / "predictions.jsonl", made / "queries.jsonl", agent=agent, evidence=evidence)
    rows = read_predictions(made / "predictions.jsonl")
    with pytest.raises(DataError, match="predictions: holds 1 files and 1 rows"):
        vmr_env.refine([made / "predictions.jsonl", rows[0]], made / "queries.jsonl", agent="vote")
    write_predictions(tmp_path / "fewer.jsonl", rows[:-2])
    with pytest.raises(
        DataError, match=r"fewer\.jsonl, qid: lacks 2 queries of .*predictions\.jsonl, \[1, 0\]; expected all"
    ):
        vmr_env.refine(
            [made / "predictions.jsonl", tmp_path / "fewer.jsonl"], made / "queries.jsonl", agent="vote"
        )
    with pytest.raises(DataError, match=r"nothing_here: cannot be read .* or 'vote', which needs no"):
        vmr_env.refine(made / "predictions.jsonl", made / "queries.jsonl", agent="nothing_here")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"policy\.json"):
        vmr_env.refine(made / "predictions.jsonl", made / "queries.jsonl", agent=tmp_path / "folder")
