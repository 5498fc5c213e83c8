"""Checkpoints: official ones load safely, with golden outputs; ours survive kills; bad ones are explained."""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from girl_detr_cases import arrays, assert_equal, config_of, inputs_of, model_of, run, state_of

from vmr_env.backbones.girl_detr.checkpoint import (
    load_checkpoint,
    load_official,
    read_manifest,
    save_checkpoint,
)
from vmr_env.backbones.girl_detr.config import REPAIRS, GirlDetrConfig
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.weights import freeze, state_sha256, tensor_sha256
from vmr_env.errors import DataError

SMALL = GirlDetrConfig(
    hidden_dim=8, nheads=2, dim_feedforward=8, v_feat_dim=6, t_feat_dim=5, enc_layers=1, dec_layers=1
)


@pytest.mark.parametrize(
    ("file", "arguments", "entry"),
    [
        ("model_best.ckpt", {}, "model"),
        ("model_best.ckpt", {"weights": "model_raw"}, "model_raw"),
        ("model_best.ckpt", {"options": "opt.json"}, "model"),
        ("model_best_merged.ckpt", {}, "model"),
    ],
)
def test_official_checkpoints(goldens: Path, file: str, arguments: dict[str, str], entry: str) -> None:
    """Sums of the head's weights, old option names, and the outputs that only frozen weights decide."""
    folder = goldens / "ckpt"
    if "options" in arguments:
        arguments = arguments | {"options": str(folder / arguments["options"])}
    model = load_official(folder / file, **arguments)  # type: ignore[arg-type]  # values by keyword
    head = model.head.state_dict()
    for name, (shape, total) in json.loads((folder / "expected.json").read_text())[entry].items():
        assert list(head[name].shape) == shape
        assert float(head[name].sum()) == pytest.approx(total, abs=1e-5)
    assert model.config == config_of(goldens / "tiny")
    assert not model.training
    output = run(model, inputs_of(goldens / "tiny"))
    expected = arrays(goldens / "tiny" / "outputs.npz")
    for name in ("saliency_scores", "saliency_scores_neg", "src_vid"):
        assert_equal(name, getattr(output, name), expected[name])
    assert_equal("hs", output.hs, arrays(goldens / "tiny" / "intermediates.npz")["hs"])


class Payload:
    """Unpickled without care, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_strangers_file_runs_no_code(tmp_path: Path, zipped: bool) -> None:
    target, path = tmp_path / "made", tmp_path / "model_best.ckpt"
    content = {"model": {"x": torch.zeros(1)}, "opt": Payload(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"model_best.ckpt: cannot be read as a checkpoint.*mkdir"):
        load_official(path)
    assert not target.exists()
    path.write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(DataError, match="cannot be read as a checkpoint"):
        load_official(path)
    assert not target.exists()


def test_the_allow_list_ends_with_the_call(goldens: Path) -> None:
    load_official(goldens / "ckpt" / "model_best.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(goldens / "ckpt" / "model_best.ckpt", weights_only=True)


def tiny_file(goldens: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The golden merged checkpoint with a change made to it."""
    content = torch.load(goldens / "ckpt" / "model_best_merged.ckpt", weights_only=True)
    change(content)
    torch.save(content, path)
    return path


CHANGES: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("missing", lambda c: c["model"].pop("query_embed.weight"), "query_embed.weight: missing"),
    ("surplus", lambda c: c["model"].update(extra=torch.zeros(2)), "extra: surplus"),
    (
        "shape",
        lambda c: c["model"].update({"query_embed.weight": torch.zeros(4, 2)}),
        r"query_embed.weight: shape \(4, 2\); expected \(5, 2\)",
    ),
    (
        "nan",
        lambda c: c["model"].update({"query_embed.weight": torch.full((5, 2), torch.nan)}),
        "query_embed.weight: .* not all finite",
    ),
    ("width", lambda c: c["config"].update(hidden_dim=2**20), r"shape \(32,\); expected \(1048576,\)"),
    ("size", lambda c: c["config"].update(hidden_dim=2**30), "hidden_dim: 1073741824; expected 1 to"),
    ("layers", lambda c: c["config"].update(enc_layers=1), "encoder.layers.1.* surplus"),
    ("no options", lambda c: c.pop("config"), "has no options under 'opt' or 'config'"),
    ("no weights", lambda c: c.pop("model"), r"\['config', 'epoch'\] but no tensors by name under 'model'"),
    ("no tensors", lambda c: c.update(model={"x": 1}), "no tensors by name under 'model'"),
    ("option missing", lambda c: c["config"].pop("nheads"), "nheads: missing option"),
    ("option kind", lambda c: c["config"].update(dropout="0.1"), "dropout: '0.1'; expected float"),
    ("tensor option", lambda c: c["config"].update(cmi_gate=torch.ones(2)), "cmi_gate: .* only False"),
    ("unbuilt option", lambda c: c["config"].update(span_loss_type="ce"), "'ce'; only 'l1' is supported"),
    ("pre-norm", lambda c: c["config"].update(pre_norm=True), "the official model cannot run it"),
]


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES]
)
def test_what_differs_is_said(
    goldens: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tiny_file(goldens, tmp_path / "changed.ckpt", change)
    with pytest.raises(DataError, match=message):
        load_official(path)


def test_all_differences_at_once(goldens: Path, tmp_path: Path) -> None:
    path = tiny_file(goldens, tmp_path / "nogate.ckpt", lambda c: c["config"].update(decoder_sent_gate=False))
    with pytest.raises(DataError) as error:
        load_official(path)
    gate = {name for name in state_of(goldens / "tiny") if ".gate_" in name}
    assert {problem.field for problem in error.value.problems} == gate


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"no checkpoint at all", "cannot be read as a checkpoint"),
        (b"PK\x03\x04 torn", "cannot be read as a checkpoint"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_official(path)
    with pytest.raises(DataError, match=message):
        load_official(tmp_path / "absent.ckpt")
    with pytest.raises(DataError, match=message):
        load_official(tmp_path)


def test_another_model_is_recognised(tmp_path: Path) -> None:
    """A state without wrapping, a list, and another detector's checkpoint."""
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "plain.ckpt")
    with pytest.raises(DataError, match="expected a GIRL-DETR checkpoint"):
        load_official(tmp_path / "plain.ckpt")
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    with pytest.raises(DataError, match="holds a list; expected a dict"):
        load_official(tmp_path / "list.ckpt")
    options = argparse.Namespace(hidden_dim=256, nheads=8, enc_layers=2, dec_layers=2)
    torch.save({"model": {"a": torch.zeros(1)}, "opt": options}, tmp_path / "other.ckpt")
    with pytest.raises(DataError, match="cmi_layers: missing option"):
        load_official(tmp_path / "other.ckpt")


def test_removed_iou_branch(goldens: Path, tmp_path: Path) -> None:
    def remove(content: dict[str, Any]) -> None:
        content["model"] = {k: v for k, v in content["model"].items() if not k.startswith("iou_embed.")}

    path = tiny_file(goldens, tmp_path / "old.ckpt", remove)
    with pytest.raises(DataError, match=r"iou_embed\.layers\.0\.weight: missing"):
        load_official(path)
    model = load_official(path, allow_missing_iou=True)
    output = run(model, inputs_of(goldens / "tiny"))
    assert torch.equal(output.pred_iou, torch.full((3, 5), 0.5))


def test_repairs_of_official_weights(goldens: Path) -> None:
    """Those that keep the parameters apply; others are refused, by the name of what they lack."""
    path = goldens / "ckpt" / "model_best.ckpt"
    model = load_official(path, repairs=frozenset({"cmi_masks", "sentence_padding"}))
    assert model.config.active_repairs == {"cmi_masks", "sentence_padding"}
    with pytest.raises(DataError, match=r"transformer\.decoder\.content: missing"):
        load_official(path, repairs=frozenset({"query_content"}))
    with pytest.raises(DataError, match=r"unknown \['nonsense'\]"):
        load_official(path, repairs=frozenset({"nonsense"}))


# Our own format


def test_own_checkpoint_round_trip(tmp_path: Path) -> None:
    model = GirlDetr(SMALL, seed=5)
    digest = save_checkpoint(tmp_path / "run" / "best", model, {"epoch": 3})
    loaded = load_checkpoint(tmp_path / "run" / "best")
    assert loaded.config == SMALL
    assert tensor_sha256(loaded.state_dict()) == tensor_sha256(model.state_dict())
    assert digest == state_sha256(model.state_dict()) == read_manifest(tmp_path / "run" / "best")["sha256"]
    assert read_manifest(tmp_path / "run" / "best")["notes"] == {"epoch": 3}
    inputs = torch.randn(2, 4, 6), torch.ones(2, 4), torch.randn(2, 3, 5), torch.ones(2, 3)
    for name in ("pred_spans", "saliency_scores_mr"):  # the latter passes the recurrent network
        assert torch.equal(*(getattr(run(m.eval(), inputs), name) for m in (model, loaded)))


@pytest.mark.parametrize("behaviour", ["official", "repaired"])
def test_official_weights_in_our_format(goldens: Path, tmp_path: Path, behaviour: str) -> None:
    model = model_of(goldens / "tiny")
    save_checkpoint(tmp_path / "tiny", model)
    assert state_sha256(load_checkpoint(tmp_path / "tiny").state_dict()) == state_sha256(model.state_dict())


def test_a_kill_while_saving_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the steps that rename a file."""
    folder = tmp_path / "best"
    old = save_checkpoint(folder, GirlDetr(SMALL, seed=1))
    for allowed in (0, 1):
        calls = 0

        def replace(source: Path, target: Path, allowed: int = allowed) -> None:
            nonlocal calls
            calls += 1
            if calls > allowed:
                raise KeyboardInterrupt
            os.rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(folder, GirlDetr(SMALL, seed=2))
        assert state_sha256(load_checkpoint(folder).state_dict()) == old
    new = save_checkpoint(folder, GirlDetr(SMALL, seed=3))
    assert state_sha256(load_checkpoint(folder).state_dict()) == new
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["config.json", f"weights-{new[:16]}.safetensors"]
    )


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format 'other', version 1; expected 'girl-detr', version 1"),
        ({"version": 2}, "version 2"),
        ({"weights": "../weights.safetensors"}, "expected a plain file name"),
        ({"weights": "absent.safetensors"}, "no readable safetensors file"),
        ({"sha256": "0" * 64}, "weights hash to"),
        (
            {"config": {**SMALL.to_dict(), "nheads": 3}},
            "hidden_dim: 8; expected a multiple of 4 and of nheads",
        ),
        ({"config": {**SMALL.to_dict(), "nhead": 2}}, "nhead: unknown option"),
        (
            {"config": {**SMALL.to_dict(), "hidden_dim": 16}},
            r"mixer.weight: shape \(8, 32\); expected \(16, 64\)",
        ),
        ({"config": 3}, "config: 3; expected dict"),
    ],
)
def test_torn_or_edited_checkpoints(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_checkpoint(tmp_path, GirlDetr(SMALL))
    edit(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        load_checkpoint(tmp_path)


def test_missing_and_broken_manifests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json does not exist"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(DataError, match="expected a JSON object"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, GirlDetr(SMALL))
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DataError, match="no readable safetensors file"):
        load_checkpoint(tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        save_checkpoint(weights, GirlDetr(SMALL))


# Configuration


def test_config_survives_json() -> None:
    for config in (
        GirlDetrConfig(),
        GirlDetrConfig(behaviour="official"),
        GirlDetrConfig(repairs=frozenset({"cmi_masks"}), lw_saliency=0.5),
    ):
        assert GirlDetrConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_behaviours_and_repairs() -> None:
    assert GirlDetrConfig().active_repairs == REPAIRS.keys()
    assert GirlDetrConfig(behaviour="official").active_repairs == frozenset()
    assert GirlDetrConfig(repairs=frozenset({"cmi_masks"})).active_repairs == {"cmi_masks"}
    with pytest.raises(KeyError):
        GirlDetrConfig().repaired("nonsense")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"behaviour": "new"}, "behaviour: 'new'; expected 'official' or 'repaired'"),
        ({"repairs": ["nonsense"]}, "unknown .'nonsense'."),
        ({"repairs": "cmi_masks"}, "expected names or null"),
        ({"behaviour": "official", "repairs": ["cmi_masks"]}, "'official', which has none"),
        ({"hidden_dim": 30, "nheads": 5}, "hidden_dim: 30; expected a multiple of 4"),
        ({"enc_layers": 0}, "enc_layers: 0; expected 1 to 100"),
        ({"dropout": 1.0}, "dropout: 1.0; expected 0 <= p < 1"),
        ({"temperature": float("nan")}, "temperature: nan; expected a finite number"),
        ({"nheads": 2.0}, "nheads: 2.0; expected int"),
        ({"mr_to_hd_loss": 1}, "mr_to_hd_loss: 1; expected bool"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        GirlDetrConfig.from_dict(options)


# Freezing and hashes


@pytest.mark.parametrize("train_head", [False, True])
def test_only_the_head_may_learn(train_head: bool) -> None:
    model = freeze(GirlDetr(SMALL).train(), train_head=train_head)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name in model.state_dict() if train_head and name.startswith("head.")}
    assert not any(module.training for module in model.modules())


def test_hashes_tell_values_shapes_types_and_names() -> None:
    state = {"a": torch.zeros(4), "b": torch.ones(2, 2)}
    same = {"b": torch.ones(2, 2), "a": torch.zeros(4)}
    assert state_sha256(state) == state_sha256(same)
    changed = [
        {**state, "a": torch.zeros(2, 2)},
        {**state, "a": torch.zeros(4, dtype=torch.int32)},
        {**state, "a": torch.tensor([0, 0, 0, 1e-30])},
        {"a": state["b"], "b": state["a"]},
    ]
    assert len({state_sha256(s) for s in [state, *changed]}) == 5
    assert tensor_sha256({"x": torch.arange(6).view(2, 3).t()}) == tensor_sha256(
        {"x": torch.tensor([[0, 3], [1, 4], [2, 5]])}
    )
