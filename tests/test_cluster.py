"""Runs on a Ray cluster of two nodes: equal numbers, lost workers and nodes, runs that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone import make_backbone

from vmr_env.agents.base import Agent
from vmr_env.agents.ensemble.cross_fitting import Progress
from vmr_env.agents.expected_gain import ExpectedGain
from vmr_env.backbones import cache
from vmr_env.backbones.base import GirlDetrDetector
from vmr_env.backbones.dataset import MomentDataset
from vmr_env.backbones.features import captions, text
from vmr_env.backbones.features.store import FeatureStore
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.recipes import get_recipe
from vmr_env.backbones.shipping import pack, unpack
from vmr_env.backbones.simulated.features import write_simulated
from vmr_env.benchmarks.experiment.experiment import Experiment, Run, train_test
from vmr_env.benchmarks.experiment.main import main
from vmr_env.benchmarks.experiment.methods import EnvironmentMethod, Fold, MethodResult, Settings
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.annotations import read_annotations
from vmr_env.data.profiles import get_profile
from vmr_env.errors import DataError
from vmr_env.files.folders import files_of, sha256_of_folder
from vmr_env.seeding import derived
from vmr_env.simulation.simulator import simulate

ray = pytest.importorskip("ray", reason="needs Ray")
Nodes = pytest.importorskip("ray.cluster_utils", reason="needs Ray").Cluster
cluster = pytest.importorskip("vmr_env.benchmarks.experiment.cluster", reason="needs Ray")
Nothing: Any = pytest.importorskip("vmr_env.benchmarks.speed.cluster", reason="needs Ray").Nothing
work_on_cluster = pytest.importorskip("vmr_env.backbones.cluster", reason="needs Ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own making

HERE = cluster.Cluster("auto")
STORE = 80 * 2**20
"""Bytes of a node's object store; nearly the least that Ray takes."""
SETTINGS = Settings(members=2, evaluations=1, proposals=1, rounds=1)


class Small(ExpectedGain):
    """As quick as may be."""

    num_envs = 8


class Poisoned(Small):
    """Always fails."""

    def update(self) -> Any:
        raise ValueError("spoilt")


class Fatal(Small):
    """Kills its worker process, once for each folder that the environment variable names."""

    def update(self) -> Any:
        marker = Path(os.environ["VMR_TEST_MARKER"])
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update()


class Endless(Small):
    """Never comes back from its second round."""

    def update(self) -> Any:
        while self.round == 1:
            pass
        return super().update()


class Given(Nothing):
    """Answers at once, and keeps what its task was given."""

    def answer(
        self, learnt: Any, fold: Fold, seed: int, settings: Settings, keep: Path, about: Any
    ) -> MethodResult:
        given = ray.get_runtime_context().get_assigned_resources()
        keep.with_name(f"{keep.name}.txt").write_text(json.dumps(given))
        return super().answer(learnt, fold, seed, settings, keep, about)


class Bulky(Nothing):
    """Answers at once, and keeps a third of an object store."""

    def answer(
        self, learnt: Any, fold: Fold, seed: int, settings: Settings, keep: Path, about: Any
    ) -> MethodResult:
        keep.with_name(f"{keep.name}.bin").write_bytes(np.random.default_rng(seed).bytes(STORE // 3))
        return super().answer(learnt, fold, seed, settings, keep, about)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    for split in ("train", "test"):
        simulate(folder / split, get_profile("charades"), split, samples=40)
    return folder


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes of one processor each; the driver is on the first."""
    marker = tmp_path_factory.mktemp("marker") / "killed"
    os.environ["VMR_TEST_MARKER"] = str(marker)
    small = {"num_cpus": 1, "object_store_memory": STORE}
    made = Nodes(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    made.add_node(**small)
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    del os.environ["VMR_TEST_MARKER"]


def experiment(
    folder: Path, caches: Path, agents: Mapping[str, Callable[..., Agent]], seeds: int = 2
) -> Experiment:
    train, test = (DecoderStateCache.open(caches / split) for split in ("train", "test"))
    methods = {name: EnvironmentMethod(agent) for name, agent in agents.items()}
    return Experiment(folder, train_test(train, test), methods, seeds, SETTINGS)


def contents(of: Experiment) -> dict[str, Any]:
    """Results without how long they took."""
    found = {}
    for path in sorted((of.folder / "runs").glob("*.json")):
        found[path.name] = json.loads(path.read_text())
        del found[path.name]["seconds"], found[path.name]["sha256"]  # the digest is of the seconds too
    return found


def ignore(*_: Any) -> None:
    """Nobody watches."""


def test_numbers_equal_those_of_one_process(nodes: Any, caches: Path, tmp_path: Path) -> None:
    here = experiment(tmp_path / "here", caches, {"small": Small})
    there = experiment(tmp_path / "there", caches, {"small": Small})
    expected: list[tuple[Run, int, int]] = []
    watched: list[tuple[Run, int, int]] = []
    for run in here.runs():
        here.do(run, lambda now, run=run: expected.append((run, now.member, now.round)))
    done: list[Run] = []

    def watch(run: Run, now: Progress) -> None:
        assert run not in done
        watched.append((run, now.member, now.round))

    failed = cluster.run_on_cluster(there, list(there.runs()), HERE, watch, done.append)
    assert failed == {}
    assert sorted(done) == sorted(there.runs())
    assert sorted(watched) == expected
    assert contents(here) == contents(there)
    for run in here.runs():
        one, other = (of.path(run).with_suffix("") for of in (here, there))
        kept = {path.suffix for path in one.parent.glob(f"{one.name}.*")}
        assert kept == {path.suffix for path in other.parent.glob(f"{other.name}.*")}
        assert len(kept) > 1  # what was learnt, too


def test_a_run_that_always_fails_is_named_and_the_others_finish(
    nodes: Any, caches: Path, tmp_path: Path
) -> None:
    of = experiment(tmp_path / "out", caches, {"bad": Poisoned, "small": Small}, seeds=1)
    failed = cluster.run_on_cluster(of, list(of.runs()), HERE, ignore, ignore)
    assert failed == {Run("bad", 0, 0): "ValueError: spoilt"}
    assert of.is_done(Run("small", 0, 0))
    assert not of.is_done(Run("bad", 0, 0))


def test_a_lost_worker_is_replaced(nodes: Any, caches: Path, tmp_path: Path) -> None:
    of = experiment(tmp_path / "out", caches, {"fatal": Fatal}, seeds=1)
    assert cluster.run_on_cluster(of, list(of.runs()), HERE, ignore, ignore) == {}
    assert Path(os.environ["VMR_TEST_MARKER"]).exists()
    assert of.is_done(Run("fatal", 0, 0))


def test_a_lost_node_is_replaced_by_another(nodes: Any, caches: Path, tmp_path: Path) -> None:
    """A node leaves in the middle; what ran there runs elsewhere."""
    extra = nodes.add_node(num_cpus=2)
    of = experiment(tmp_path / "out", caches, {"small": Small}, seeds=4)
    lost: list[Any] = []

    def lose(run: Run) -> None:
        if not lost:
            lost.append(run)
            nodes.remove_node(extra, allow_graceful=False)

    assert cluster.run_on_cluster(of, list(of.runs()), HERE, ignore, lose) == {}
    assert lost
    assert all(map(of.is_done, of.runs()))


def test_four_nodes_give_the_numbers_of_one_process(nodes: Any, caches: Path, tmp_path: Path) -> None:
    more = [nodes.add_node(num_cpus=1) for _ in range(2)]
    nodes.wait_for_nodes(timeout=120)  # and none that an earlier test has removed
    here = experiment(tmp_path / "here", caches, {"small": Small}, seeds=5)
    there = experiment(tmp_path / "there", caches, {"small": Small}, seeds=5)
    for run in here.runs():
        here.do(run)
    assert sum(node["Alive"] for node in ray.nodes()) == 4
    assert cluster.run_on_cluster(there, list(there.runs()), HERE, ignore, ignore) == {}
    assert contents(here) == contents(there)
    for node in more:
        nodes.remove_node(node)


def test_results_that_fill_the_object_stores_arrive(nodes: Any, caches: Path, tmp_path: Path) -> None:
    """Twice as much as both nodes hold; Ray moves what has no room to the disk."""
    train, test = (DecoderStateCache.open(caches / split) for split in ("train", "test"))
    of = Experiment(tmp_path / "out", train_test(train, test), {"bulky": Bulky()}, 12, SETTINGS)
    assert cluster.run_on_cluster(of, list(of.runs()), HERE, ignore, ignore) == {}
    for run in of.runs():
        kept = of.path(run).with_suffix(".bin").read_bytes()
        assert kept == np.random.default_rng(derived(run.seed, "fold", 0)).bytes(STORE // 3)


DRIVER = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import ray
from pathlib import Path
from test_cluster import HERE, Small, cluster, experiment, ignore
ray.init({address!r}, log_to_driver=False)
of = experiment(Path({out!r}), Path({caches!r}), {{"small": Small}}, seeds=3)
die = lambda run: os.kill(os.getpid(), signal.SIGKILL)
cluster.run_on_cluster(of, list(of.runs()), HERE, ignore, die)
"""


def test_a_driver_that_is_killed_is_resumed_by_another(nodes: Any, caches: Path, tmp_path: Path) -> None:
    """It dies when it has written its first result; the rest is done here, to the same numbers."""
    out = tmp_path / "out"
    here = {"tests": str(Path(__file__).parent), "out": str(out), "caches": str(caches)}
    code = DRIVER.format(address=nodes.address, **here)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    of = experiment(out, caches, {"small": Small}, seeds=3)
    of.check_done()
    todo = [run for run in of.runs() if not of.is_done(run)]
    assert len(todo) == 2
    assert cluster.run_on_cluster(of, todo, HERE, ignore, ignore) == {}
    whole = experiment(tmp_path / "whole", caches, {"small": Small}, seeds=3)
    for run in whole.runs():
        whole.do(run)
    assert contents(of) == contents(whole)


def test_an_interrupt_stops_the_work_and_resuming_goes_on(nodes: Any, caches: Path, tmp_path: Path) -> None:
    of = experiment(tmp_path / "out", caches, {"small": Small})
    whole = experiment(tmp_path / "whole", caches, {"small": Small})

    def interrupt(run: Run) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.run_on_cluster(of, list(of.runs()), HERE, ignore, interrupt)
    todo = [run for run in of.runs() if not of.is_done(run)]
    assert 0 < len(todo) < 2
    assert cluster.run_on_cluster(of, todo, HERE, ignore, ignore) == {}
    assert cluster.run_on_cluster(whole, list(whole.runs()), HERE, ignore, ignore) == {}
    assert contents(of) == contents(whole)


def test_an_interrupt_ends_work_that_would_never_end(nodes: Any, caches: Path, tmp_path: Path) -> None:
    """Else there would be no processor for the runs that come then."""
    folds, agents = experiment(tmp_path, caches, {}).folds, {"endless": EnvironmentMethod(Endless)}
    of = Experiment(tmp_path / "endless", folds, agents, 2, replace(SETTINGS, rounds=2))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.run_on_cluster(of, list(of.runs()), HERE, interrupt, ignore)
    after = experiment(tmp_path / "after", caches, {"small": Small})
    assert cluster.run_on_cluster(after, list(after.runs()), HERE, ignore, ignore) == {}


def test_runs_are_given_the_processors_and_accelerators_that_are_asked_for(
    nodes: Any, caches: Path, tmp_path: Path
) -> None:
    extra = nodes.add_node(num_cpus=4, num_gpus=1)
    nodes.wait_for_nodes(timeout=120)
    assert work_on_cluster.workers(HERE) == 6
    asked = cluster.Cluster("auto", cpus=2, gpus=0.5)
    assert work_on_cluster.workers(asked) == 2
    folds = experiment(tmp_path, caches, {}).folds
    of = Experiment(tmp_path / "out", folds, {"given": Given()}, 3, SETTINGS)
    assert cluster.run_on_cluster(of, list(of.runs()), asked, ignore, ignore) == {}
    for run in of.runs():
        assert json.loads(of.path(run).with_suffix(".txt").read_text()) == {"CPU": 2, "GPU": 0.5}
    nodes.remove_node(extra)


def test_a_node_that_lacks_a_folder_gets_it_from_the_driver_once(
    nodes: Any, caches: Path, tmp_path: Path
) -> None:
    """Through Ray: the path that is told does not exist, as on another machine."""
    packed = pack(experiment(tmp_path / "out", caches, {}), tmp_path / "out")
    told = packed._replace(folders=dict.fromkeys(packed.folders, "/nowhere"))
    desk = work_on_cluster.open_desk(packed.folders)

    def spans(packed: Any, desk: Any) -> list[Any]:
        (fold,) = work_on_cluster.received(packed, desk).folds
        return [str(fold.train.path), np.array(fold.train.spans), np.array(fold.test.spans)]

    environment = {"env_vars": {"VMR_ENV_CACHE": str(tmp_path / "user")}}
    task: Any = ray.remote(runtime_env=environment)(spans)
    place, *found = ray.get(task.remote(told, desk))
    assert Path(place).parent == tmp_path / "user" / "shipped"
    for split, one in zip(("train", "test"), found, strict=True):
        np.testing.assert_array_equal(one, DecoderStateCache.open(caches / split).spans)
    nobody = work_on_cluster.open_desk({})
    assert ray.get(task.remote(told, nobody))[0] == place


def test_the_main_job_gives_the_same_table_and_goes_on_after_an_interrupt(
    nodes: Any,
    caches: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_module: Callable[[str, str], None],
) -> None:
    """From the command line: one process against the cluster; `--resume` there finishes what began here."""
    monkeypatch.chdir(tmp_path)
    source = "from vmr_env.agents.expected_gain import ExpectedGain\nclass Small(ExpectedGain): num_envs = 8"
    own_module("own", source)
    data = ["--cache", str(caches / "train"), "--test-cache", str(caches / "test")]
    quick = ["--agents", "--agent", "own:Small", "--members", "2", "--evaluations", "1", "--rounds", "1"]
    assert main([*data, *quick, "--jobs", "1", "--out", "here"]) == 0
    assert main([*data, *quick, "--jobs", "1", "--seeds", "1", "--out", "there"]) == 0
    assert main([*data, *quick, "--cluster", "auto", "--resume", "--out", "there"]) == 0
    tables = [(tmp_path / name / "table.md").read_text().splitlines() for name in ("here", "there")]
    kept = [[line.split("|")[:-3] for line in table if "|" in line] for table in tables]  # but for speeds
    assert kept[0] == kept[1]


def test_folders_are_shipped_to_machines_that_lack_them(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original is gone where the experiment is unpacked; each folder is fetched once, by its content."""
    monkeypatch.setenv("VMR_ENV_CACHE", str(tmp_path / "user"))
    shutil.copytree(caches, tmp_path / "driver")
    of = experiment(tmp_path / "out", tmp_path / "driver", {"small": Small})
    spans = np.array(of.folds[0].train.spans)
    packed = pack(of, of.folder)
    shipped = {digest: list(files_of(Path(folder))) for digest, folder in packed.folders.items()}
    shutil.rmtree(tmp_path / "driver")
    fetched: list[str] = []

    def fetch(digest: str) -> Iterator[tuple[str, bytes]]:
        fetched.append(digest)
        return iter(shipped[digest])

    for _ in range(2):
        again = unpack(packed, fetch)
        np.testing.assert_array_equal(again.folds[0].train.spans, spans)
    assert sorted(fetched) == sorted(packed.folders)
    assert not list((tmp_path / "user" / "shipped").glob(".*"))


def test_a_folder_of_other_content_under_the_same_path_is_not_taken(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMR_ENV_CACHE", str(tmp_path / "user"))
    shutil.copytree(caches, tmp_path / "driver")
    of = experiment(tmp_path / "out", tmp_path / "driver", {"small": Small})
    packed = pack(of, of.folder)
    shipped = {digest: list(files_of(Path(folder))) for digest, folder in packed.folders.items()}
    spans = np.array(of.folds[0].test.spans)
    shutil.rmtree(tmp_path / "driver" / "test")
    shutil.copytree(caches / "train", tmp_path / "driver" / "test")
    again = unpack(packed, lambda digest: iter(shipped[digest]))
    np.testing.assert_array_equal(again.folds[0].test.spans, spans)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "simulated"
    write_simulated(folder, get_profile("charades"), samples=60, seed=1)
    return folder


def detection(samples: Path) -> tuple[GirlDetrDetector, MomentDataset]:
    """A small detector, and samples for it."""
    recipe = get_recipe("charades-simulated").with_options(
        {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 16, "enc_layers": 1, "dec_layers": 1}
    )
    rows = read_annotations(samples / "annotations.jsonl")
    dataset = MomentDataset(
        rows, FeatureStore(samples / "clips"), FeatureStore(samples / "text"), recipe.data
    )
    widths = {"v_feat_dim": dataset.video_width, "t_feat_dim": dataset.text_width}
    return GirlDetrDetector(GirlDetr(recipe.with_options(widths).model), "refined"), dataset


def test_a_cache_made_on_a_cluster_is_that_of_one_process(
    nodes: Any, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte; parts that are there are not made again, a damaged one is."""
    monkeypatch.setattr(cache, "PART_SAMPLES", 16)
    detector, dataset = detection(samples)
    facts: Any = {"split": "train", "source": "simulated", "profile": "charades", "batch_size": 8}
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    cache.build_cache(alone, detector, dataset, progress=False, **facts)
    cache.build_cache(spread, detector, dataset, shard=(0, 2), progress=False, **facts)  # 2 of 4 parts
    (damaged, whole) = sorted(tmp_path.glob(".spread.parts-*/*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    before = whole.stat().st_mtime_ns
    made: list[range] = []
    of_cluster = work_on_cluster.spread

    def counted(work: Any, items: Any, where: Any) -> Any:
        made.extend(items)
        assert whole.stat().st_mtime_ns == before
        return of_cluster(work, items, where)

    monkeypatch.setattr(work_on_cluster, "spread", counted)
    cache.build_cache(spread, detector, dataset, progress=False, cluster=HERE, **facts)
    assert made == [range(16), range(16, 32), range(48, 60)]
    assert sha256_of_folder(spread) == sha256_of_folder(alone)


def test_the_command_that_makes_a_cache_takes_a_cluster(nodes: Any, tmp_path: Path) -> None:
    made = make_backbone(tmp_path / "backbone", train=20, select=4, test=4)
    features = made.features / "train"
    words = [made.weights, "--annotations", features / "annotations.jsonl", "--split", "train"]
    words += ["--clips", features / "clips", "--text", features / "text"]
    for out, more in (("alone", []), ("spread", ["--cluster", "auto", "--cpus-per-worker", "1"])):
        cache.main([str(word) for word in (*words, "--out", tmp_path / out, *more)])
    assert sha256_of_folder(tmp_path / "alone") == sha256_of_folder(tmp_path / "spread")


def test_what_a_worker_refuses_is_one_error(nodes: Any, samples: Path, tmp_path: Path) -> None:
    detector, dataset = detection(samples)
    with torch.no_grad():
        detector.model.head.class_embed.weight.fill_(torch.nan)
    with pytest.raises(DataError, match=r"a worker failed: detector, .* not finite"):
        cache.build_cache(
            tmp_path / "out",
            detector,
            dataset,
            split="train",
            source="simulated",
            profile="charades",
            cluster=HERE,
            progress=False,
        )


class Letters:
    """One token per word: its number of letters. A sentence is the mean of its tokens."""

    name = "letters"
    fingerprint = "0123456789abcdef0"

    def encode(self, sentences: Sequence[str], level: str) -> list[Any]:
        tokens = [np.array([[len(word)] for word in text.split()], np.float32) for text in sentences]
        return tokens if level == "tokens" else [rows.mean(0, keepdims=True) for rows in tokens]


def test_sentences_encoded_on_a_cluster_are_those_of_one_process(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "SHARD_SENTENCES", 4)
    queries = {str(i): f"{'word ' * (i % 5)}number {'x' * i}" for i in range(14)}
    videos = {"v": list(queries.values())[:5], "w": list(queries.values())[3:9]}
    stores = []
    for name, where in (("alone", None), ("spread", HERE)):
        given: Any = {"cache": tmp_path / f"{name}-known", "progress": False, "cluster": where}
        text.build_text_store(tmp_path / name / "text", queries, Letters(), **given)
        captions.build_caption_store(tmp_path / name / "clips", videos, Letters(), **given)
        stores.append([sha256_of_folder(tmp_path / name), sha256_of_folder(tmp_path / f"{name}-known")])
    assert stores[0] == stores[1]
