"""How programs end: with an exit code and one line, whatever a user, a disk or another process does."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from vmr_env.errors import DataError, MissingExtra, is_plain

INTERRUPTED = 130


@contextmanager
def plain_exit() -> Iterator[None]:
    """Turn what ends a program into a line on standard error and an exit code.

    The codes are 1 for data, files and extras that cannot be used, 2 where only options are wrong, and 130
    after Ctrl-C or SIGTERM.

    Raises:
        SystemExit: with that code.
    """
    try:
        with terminated_as_interrupted():
            yield
    except DataError as error:
        _exit(f"error: {error}", exit_code(error))
    except (MissingExtra, FloatingPointError) as error:
        _exit(f"error: {error}", 1)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit("", 1)
    except OSError as error:
        _exit(f"error: {error}", 1)
    except MemoryError as error:
        _exit(f"error: out of memory ({error})", 1)
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED)


def wrong_word(words: Iterable[str]) -> str | None:
    """What is wrong with a word of a command line, such as the name of a file that others made; else None."""
    for word in words:
        if not is_plain(word):
            return f"argument {word!r} holds control characters, or bytes that are no text; rename the file"
    return None


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run the main function of a module as a program."""
    if wrong := wrong_word(sys.argv[1:]):
        _exit(f"error: {wrong}", 2)
    with plain_exit():
        raise SystemExit(main() or 0)


def exit_code(error: DataError) -> int:
    """2 where only options are wrong, which say so by their names; 1 for all other data."""
    return 2 if all(problem.where.startswith("--") for problem in error.problems) else 1


def _exit(line: str, code: int) -> None:
    if line:
        print(line, file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM acts like Ctrl-C in this block, so that what is begun is left as an interruption leaves it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """Let this worker process end when the process that started it does, however that ends.

    Files that it was writing stay under their temporary names, which the next writer sweeps.
    """
    import multiprocessing

    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
