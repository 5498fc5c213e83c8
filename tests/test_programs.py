"""How programs end: exit codes, signals, and worker processes without a parent."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vmr_env.errors import DataError, MissingExtra, Problem
from vmr_env.files.writing import only_writer
from vmr_env.programs import plain_exit, run_program

TESTS = Path(__file__).parent

# A shell's background jobs, and so these tests in one, are born deaf to Ctrl-C.
PROGRAM = """
import signal
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from endless import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path({workers!r}), {runs})
"""


def endless(tmp_path: Path, runs: int) -> "subprocess.Popen[str]":
    """A program with two worker processes that never end by themselves, for two runs or for two members of
    one; both have begun."""
    (tmp_path / "workers").mkdir()
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(tests=str(TESTS), workers=str(tmp_path / "workers"), runs=runs))
    pipe = subprocess.PIPE
    program = subprocess.Popen([sys.executable, script], stdout=pipe, stderr=pipe, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "begun\n"
    return program


def errors_of(program: "subprocess.Popen[str]") -> str:
    """What a program writes to standard error until it ends; one that does not end is killed."""
    try:
        return program.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        program.kill()
        raise


def alive(tmp_path: Path) -> list[str]:
    """Worker processes that are there."""
    return [path.name for path in (tmp_path / "workers").iterdir() if Path("/proc", path.name).exists()]


@pytest.mark.parametrize(
    ("number", "runs"), [(signal.SIGTERM, 2), (signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGINT, 1)]
)
def test_sigterm_is_ctrl_c(tmp_path: Path, number: int, runs: int) -> None:
    with endless(tmp_path, runs) as program:
        program.send_signal(number)
        errors = errors_of(program)
    assert program.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert alive(tmp_path) == []


@pytest.mark.parametrize("runs", [2, 1])
def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path, runs: int) -> None:
    with endless(tmp_path, runs) as program:
        assert len(alive(tmp_path)) == 2
        program.kill()
        program.communicate()  # workers hold the pipes: they are at their end when all have ended


@pytest.mark.parametrize("runs", [2, 1])
def test_a_killed_worker_is_one_error_that_says_how_to_go_on(tmp_path: Path, runs: int) -> None:
    with endless(tmp_path, runs) as program:
        os.kill(int(alive(tmp_path)[0]), signal.SIGKILL)
        errors = errors_of(program)
    assert program.returncode == 1
    assert "a worker process was killed, perhaps for want of memory; --resume goes on" in errors
    assert "Traceback" not in errors
    assert alive(tmp_path) == []


ENDS: list[tuple[BaseException, int, str]] = [
    (DataError(Problem("file", 3, "qid", "is bad")), 1, "error: file, row 3, qid: is bad"),
    (DataError(Problem("--seeds", None, None, "is bad")), 2, "error: --seeds: is bad"),
    (DataError([Problem("--seeds", None, None, "a"), Problem("b", None, None, "c")]), 1, "error: --seeds: a"),
    (MissingExtra("pip install x"), 1, "error: pip install x"),
    (FloatingPointError("not finite"), 1, "error: not finite"),
    (OSError(28, "No space left", "f"), 1, "error: [Errno 28] No space left: 'f'"),
    (MemoryError("8 GiB"), 1, "error: out of memory (8 GiB)"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize(("error", "code", "line"), ENDS)
def test_every_end_has_its_code_and_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        with plain_exit():
            raise error

    with pytest.raises(SystemExit) as caught:
        fail()
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("word", ["a\x1b[31mred\x07.jsonl", "two\nlines", "\udcff.jsonl", "--out=\x9b1m"])
def test_words_that_would_steer_a_terminal_are_refused(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["program", "good.jsonl", word])
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: pytest.fail("the program ran"))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: argument '")
    assert said.removesuffix("\n").isprintable()


def test_words_of_any_language_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["program", "öffnet.jsonl", "動画　一.jsonl", "a\xa0b", "👩‍🍳", ""])
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: 0)
    assert caught.value.code == 0


def test_errors_of_the_program_itself_keep_their_traceback() -> None:
    def fail() -> None:
        with plain_exit():
            raise KeyError("bug")

    with pytest.raises(KeyError):
        fail()


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with plain_exit():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


HOLD = """
import sys
from pathlib import Path
from vmr_env.files.writing import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.communicate])
def test_the_lock_on_a_folder_ends_with_its_owner(
    tmp_path: Path, end: Callable[["subprocess.Popen[str]"], object]
) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=pipe, stdout=pipe, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="is written by another process"), only_writer(tmp_path):
            pass
        end(owner)
        owner.wait()
    with only_writer(tmp_path):
        assert os.listdir(tmp_path) == []
