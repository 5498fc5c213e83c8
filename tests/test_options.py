"""Options as a dataclass: how they are read, told and checked."""

from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest

from vmr_env.benchmarks.experiment.names import BACKBONE_AGENTS, DEFAULT_AGENTS
from vmr_env.benchmarks.experiment.options import Options, check, resolved
from vmr_env.options import argument, option, out_of_range, parse, parse_in_range


@dataclass(frozen=True)
class Example:
    """An example."""

    files: tuple[Path, ...] = argument("what to read")
    out: Path = option(MISSING, "where to write")
    seeds: int = option(2, "how many", group="learning", least=1)
    rounds: int | None = option(None, "of learning", group="learning", least=1)
    names: tuple[str, ...] = option(("a", "b"), "of agents", empty=True)
    pair: tuple[Path, Path] | None = option(None, "two", metavar=("ONE", "TWO"))
    set: tuple[str, ...] = option((), "again and again", repeated=True)
    kind: str | None = option(None, "which", choices=("x", "y"))
    keep_all: bool = option(False, "flag")
    cluster: str | None = option(None, "where", bare="here", metavar="ADDRESS")


def example(text: str) -> Example:
    return parse(Example, text.split())


def test_values_have_the_types_of_their_fields() -> None:
    given = example("f g --out o --seeds 3 --pair p q --set 1 --set 2 --kind y --keep-all --names")
    assert given == Example(
        files=(Path("f"), Path("g")),
        out=Path("o"),
        seeds=3,
        pair=(Path("p"), Path("q")),
        set=("1", "2"),
        kind="y",
        keep_all=True,
        names=(),
    )
    left_out = example("f --out o")
    assert (left_out.seeds, left_out.names, left_out.set, left_out.rounds) == (2, ("a", "b"), (), None)


@pytest.mark.parametrize(("text", "value"), [("", None), ("--cluster", "here"), ("--cluster a:1", "a:1")])
def test_an_option_may_have_a_value_for_being_given_alone(text: str, value: str | None) -> None:
    assert example(f"f --out o {text}").cluster == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--out o", "the following arguments are required: files"),
        ("f", "the following arguments are required: --out"),
        ("f --out o --kind z", "invalid choice: 'z'"),
        ("f --out o --seeds two", "argument --seeds: invalid int value"),
        ("f --out o --pair p", "argument --pair: expected 2 arguments"),
        ("f --out o --see 2", "unrecognized arguments: --see"),
    ],
)
def test_wrong_commands_are_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        example(text)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_help_tells_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example("--help")
    told = capsys.readouterr().out
    for name in ("out", "seeds", "rounds", "names", "pair", "set", "kind", "keep-all", "cluster"):
        assert f"  --{name}" in told
    assert "An example." in told
    assert "how many (default: 2)" in told
    assert "of agents (default: a b)" in told
    assert told.index("learning:") < told.index("--seeds SEEDS ")


@dataclass(frozen=True)
class Pairs:
    """Repeated pairs."""

    pair: tuple[tuple[Path, Path], ...] = option((), "two, again", repeated=True)
    times: int = option(1, "how often", least=1)


def test_a_pair_may_be_repeated() -> None:
    given = parse(Pairs, ["--pair", "a", "b", "--pair", "c", "d"])
    assert given.pair == ((Path("a"), Path("b")), (Path("c"), Path("d")))
    assert parse(Pairs, []).pair == ()


def test_small_numbers_are_wrong_where_nothing_else_checks_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_in_range(Pairs, ["--times", "1"]).times == 1
    with pytest.raises(SystemExit) as left:
        parse_in_range(Pairs, ["--times", "0"], "program")
    assert left.value.code == 2
    assert "program: error: --times: is 0, expected a whole number from 1" in capsys.readouterr().err


def test_numbers_that_make_no_sense() -> None:
    problems = out_of_range(example("f --out o --seeds 0 --rounds -1"))
    assert [str(problem) for problem in problems] == [
        "--seeds: is 0, expected a whole number from 1",
        "--rounds: is -1, expected a whole number from 1",
    ]


def test_without_data_the_main_job_runs_on_the_embedded_backbone() -> None:
    bare = resolved(Options())
    check(bare)
    assert bare.weights is not None
    assert (bare.weights / "config.json").is_file()
    for cache in (bare.cache, bare.test_cache, bare.select_cache):
        assert cache is not None
        assert (cache / "states.npy").is_file()
    assert bare.agents == BACKBONE_AGENTS
    other = resolved(Options(dataset="tacos"))
    assert (other.cache, other.weights, other.agents) == (None, None, DEFAULT_AGENTS)
