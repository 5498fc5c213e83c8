"""Methods that train the backbone's head in the main job: from caches to table, and into the backbone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone import Backbone, make_backbone, open_features
from one_run import run_alone
from safetensors.torch import load_file, save_file

from vmr_env.agents.evaluation import USES
from vmr_env.agents.tensors import write_tensors
from vmr_env.agents.tprl.head_training import uses
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint, save_checkpoint
from vmr_env.backbones.girl_detr.inference import WindowSettings
from vmr_env.backbones.predict import predict
from vmr_env.benchmarks.cli import graft
from vmr_env.benchmarks.experiment.experiment import train_test
from vmr_env.benchmarks.experiment.head_methods import ablations, configured, head_config, parse_options
from vmr_env.benchmarks.experiment.main import main
from vmr_env.benchmarks.experiment.methods import HeadMethod, Settings
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.predictions import read_predictions
from vmr_env.errors import DataError

QUICK = ["--members", "2", "--evaluations", "1", "--rounds", "1", "--jobs", "1", "--seeds", "1"]
SHORT_TPRL = [
    *("--set", "tprl.epochs=[0,1,1]", "--set", "tprl.lr=0.01", "--set", "tprl.class_lr=0.01"),
    *("--set", "tprl.start_is_candidate=false", "--set", "tprl.ema=0"),
]
SHORT = [
    *SHORT_TPRL,
    *("--set", "head_grpo.epochs=[0,0,2]", "--set", "head_grpo.lr=0.01"),
    *("--set", "head_grpo.start_is_candidate=false"),
    *("--set", "sb3_head_ppo.epochs=[0,0,2]", "--set", "sb3_head_ppo.lr=0.01"),
    *("--set", "sb3_head_ppo.start_is_candidate=false"),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("backbone"))


def arguments(backbone: Backbone, out: Path, *more: str) -> list[str]:
    data = ["--cache", str(backbone.caches / "train"), "--test-cache", str(backbone.caches / "test")]
    return [*data, "--weights", str(backbone.weights), *QUICK, "--out", str(out), *more]


@pytest.fixture(scope="module")
def run(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three methods that train the head, and of an agent."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(arguments(backbone, out, "--agents", "tprl", "head_grpo", "sb3_head_ppo", "ppo", *SHORT)) == 0
    return out


def test_the_whole_model_with_the_trained_head_predicts_what_the_run_wrote(
    backbone: Backbone, run: Path, tmp_path: Path
) -> None:
    annotations = read_annotations(backbone.features / "test" / "annotations.jsonl", past_end="clip")
    durations = {row.qid: row.duration for row in annotations}
    for agent in ("tprl", "head_grpo", "sb3_head_ppo"):
        kept = run / "runs" / f"{agent}-seed0-fold0.safetensors"
        graft.main([str(backbone.weights), str(kept), "--out", str(tmp_path / agent)])
        model = load_checkpoint(tmp_path / agent)
        before, after = load_checkpoint(backbone.weights).state_dict(), model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        parts = {name.split(".")[1] for name in changed}  # the epoch kept may precede the class layer's
        assert "span_embed" in parts
        assert parts <= {"span_embed", "class_embed"}
        found = predict(
            model,
            open_features(backbone.features / "test", backbone.recipe),
            WindowSettings(1.0, longest=150, inside_video=True),
            batch_size=8,
        )
        by_qid = {row.qid: row.windows for row in found}
        for row in read_predictions(run / f"submission-{agent}-seed0.jsonl"):
            # Submitted times are whole seconds; the last may lie beyond the end of the video.
            inside = row.windows.clip(max=durations[row.qid])
            np.testing.assert_allclose(inside, by_qid[row.qid], atol=1.1e-4)


def test_the_report_shows_that_nothing_but_the_head_changed(backbone: Backbone, run: Path) -> None:
    record = json.loads((run / "results.json").read_text())
    tensors = set(load_checkpoint(backbone.weights).state_dict())
    frozen = record["agents"]["tprl"]["frozen"]
    trained = {name for name in tensors if name.startswith(("head.span_embed", "head.class_embed"))}
    assert set(frozen) == tensors - trained
    assert all(hashes["after"] == [hashes["before"]] for hashes in frozen.values())
    assert record["agents"]["tprl"]["config"]["lr"] == 0.01
    assert record["agents"]["ppo"]["frozen"] == {}
    assert record["run"]["submission_times"] is True
    assert record["agents"]["tprl"]["chosen_rounds"] != [0]


def test_a_selection_cache_chooses_instead_of_parts_of_the_training_videos(
    backbone: Backbone, tmp_path: Path
) -> None:
    select = ["--select-cache", str(backbone.caches / "select")]
    more = ["--agents", "tprl", *select, *SHORT_TPRL]
    assert main(arguments(backbone, tmp_path / "out", *more)) == 0
    run = json.loads((tmp_path / "out" / "runs" / "tprl-seed0-fold0.json").read_text())
    assert run["selection"]["rounds"] == [1, 2]
    shares = np.array(run["selection"]["uses"])  # (evaluations, uses)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert shares[0, USES.index("another proposal")] == 0  # stage 2 does not choose anew
    assert shares[1, USES.index("kept")] < 1
    assert run["selection"]["steps"] == 2 * 40


def test_what_training_made_of_moments(backbone: Backbone) -> None:
    cache = DecoderStateCache.open(backbone.caches / "test")
    rows = np.array([2, 0, 1])
    clip = cache.manifest["clip_seconds"] / cache.durations[rows]
    spans = np.tile(np.float32([[0.2, 0.6], [0.5, 0.9]]), (3, 1, 1))
    scores = np.float32([[0.9, 0.1]] * 3)
    moved, chosen = spans.copy(), scores.copy()
    moved[0, 0, 1] += 0.6 * clip[0]  # more than half a clip
    moved[1, 0, 0] += 0.4 * clip[1]  # less
    moved[2, 1] = 0
    chosen[2] = 0.1, 0.9
    found = uses((spans, scores), (moved, chosen), cache, rows)
    assert found == {
        "uses/kept": 1 / 3,
        "uses/start moved": 0,
        "uses/end moved": 1 / 3,
        "uses/both moved": 0,
        "uses/another proposal": 1 / 3,
    }


def test_resuming_gives_the_same_numbers(backbone: Backbone, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--agents", "tprl", "head_grpo", "sb3_head_ppo", "ppo", *SHORT]
    assert main(arguments(backbone, out, *more)) == 0
    (out / "runs" / "head_grpo-seed0-fold0.json").unlink()
    assert main([*arguments(backbone, out, *more), "--resume"]) == 0
    for result in (run / "runs").glob("*.json"):
        one, other = (json.loads((folder / "runs" / result.name).read_text()) for folder in (run, out))
        timed = {"seconds": 0, "sha256": ""}  # the digest is of the seconds too
        assert {**one, **timed} == {**other, **timed}


BAD: dict[str, tuple[list[str], str]] = {
    "no weights": (["--weights", "nowhere"], "nowhere"),
    "unknown agent in --set": (["--set", "pro.lr=1"], "--set: is 'pro.lr=1', expected agent.name=value"),
    "unknown setting": (["--set", "tprl.sped=1"], "--set: has 'sped', expected some of batch_size"),
    "unknown setting of a policy": (["--set", "ppo.sped=1"], "--set: has 'sped', expected some of clip"),
    "no members": (
        ["--set", "ppo.members=0"],
        "--set: members is 0, expected a whole number of at least 1",
    ),
    "members as text": (
        ["--set", "ppo.members=many"],
        "--set: members is 'many', expected a whole number of at least 1",
    ),
    "endless rate": (["--set", "ppo.lr=Infinity"], "--set: lr is inf, expected a number above 0"),
    "unknown network": (
        ["--set", "ppo.network=flatt"],
        "--set: network is 'flatt', expected one of 'refinement', 'flat'",
    ),
    "no settings": (["--set", "sb3_ppo.lr=1"], "--set: names sb3_ppo, expected an agent with settings"),
    "bad value": (["--set", "tprl.lr=-1"], "--set: lr is -1, expected a number above 0"),
    "bad choice": (["--set", "tprl.estimator=ppo"], "--set: estimator is 'ppo', expected one of"),
    "bad stages": (["--set", "tprl.epochs=[0,0,0]"], "--set: epochs must be 3 lengths"),
    "stages as text": (["--set", "head_grpo.epochs=many"], "--set: "),
}


def test_heads_without_weights_are_refused(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(backbone, tmp_path / "out", "--agents", "tprl")
    at = command.index("--weights")
    assert main(command[:at] + command[at + 2 :]) == 2
    assert "--weights: is missing, expected with --cache for tprl" in capsys.readouterr().err


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(
    name: str, backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, message = BAD[name]
    command = arguments(backbone, tmp_path / "out", "--agents", "tprl", "head_grpo", "ppo", "sb3_ppo", *more)
    assert main(command) == (1 if name == "no weights" else 2)  # data that are missing, or a wrong command
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error: ") == 1


def test_weights_of_another_backbone_are_refused(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_checkpoint(backbone.weights)
    with torch.no_grad():
        model.head.class_embed.bias.add_(1)
    save_checkpoint(tmp_path / "other", model)
    more = ["--agents", "tprl", "--weights", str(tmp_path / "other")]
    assert main(arguments(backbone, tmp_path / "out", *more)) == 1
    assert "of the backbone that made" in capsys.readouterr().err


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


SPOILS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_bytes(b""), "cannot be read"),
    (lambda path: write_tensors(path, {"class_embed.weight": torch.zeros(2, 3)}), "as the backbone's head"),
    (lambda path: save_file(load_file(path), path), "holds no head with a hash"),
    (_flip, "is damaged: its hash is another"),
]


@pytest.mark.parametrize("spoil", range(len(SPOILS)))
def test_a_damaged_head_or_one_of_another_backbone_is_refused(
    backbone: Backbone, run: Path, tmp_path: Path, spoil: int
) -> None:
    change, says = SPOILS[spoil]
    path = tmp_path / "head.safetensors"
    shutil.copy(run / "runs" / "tprl-seed0-fold0.safetensors", path)
    change(path)
    with pytest.raises(DataError, match=rf"head\.safetensors.*{says}"):
        graft.graft(backbone.weights, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kept_heads_hold_the_whole_head(backbone: Backbone, run: Path) -> None:
    kept = load_file(run / "runs" / "tprl-seed0-fold0.safetensors")
    assert set(kept) == set(load_checkpoint(backbone.weights).head.state_dict())


def test_what_is_kept_is_named_by_the_whole_unit(backbone: Backbone, tmp_path: Path) -> None:
    """A full stop in a name begins no suffix."""
    fold = train_test(*(DecoderStateCache.open(backbone.caches / split) for split in ("train", "test")))[0]
    config = configured(head_config("tprl", "charades"), {"epochs": [0, 0, 1]})
    keep = tmp_path / "baseline. mean-seed0-fold0"
    run_alone(HeadMethod(config, backbone.weights), fold, Settings(2, 1, 1, None), keep)
    assert [path.name for path in tmp_path.iterdir()] == ["baseline. mean-seed0-fold0.safetensors"]


def test_variants_share_the_budget() -> None:
    variants = ablations("charades", Path("weights"))
    ours = head_config("tprl", "charades")
    for name, method in variants.items():
        if name != "tprl_paper":
            assert method.config.schedule.epochs == ours.schedule.epochs  # type: ignore[attr-defined]
    assert len({repr(method) for method in variants.values()}) == len(variants)


def test_options_are_read_as_json_or_text() -> None:
    options = parse_options(["tprl.lr=1e-3", "tprl.reward=iou_step", "tprl.top_k=null"], ["tprl"])
    config = configured(head_config("tprl", "charades"), options["tprl"])
    assert (config.lr, config.reward, config.top_k) == (1e-3, "iou_step", None)  # type: ignore[attr-defined]
