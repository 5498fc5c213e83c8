"""Types of command-line arguments that more than one program of the backbones has."""

import argparse

import torch


def device(text: str) -> str:
    """A torch device that is there, such as cpu or cuda:0."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(
            f"is {text!r}; expected cpu or a device of this machine ({reason})"
        ) from None
    return text


def whole_number(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a whole number from 1")
    return int(text)


def share(text: str) -> tuple[int, int]:
    """I/N, the I-th of N shares, counted from 0."""
    index, slash, count = text.partition("/")
    if not slash or not (index + count).isdigit() or not index or not count or int(index) >= int(count):
        raise argparse.ArgumentTypeError(f"is {text!r}; expected I/N with I from 0 to N - 1, such as 0/4")
    return int(index), int(count)
