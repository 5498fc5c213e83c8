"""Seeds of random streams that are independent by construction, whatever numbers their keys have in common.

`seed + i` gives two users of neighbouring seeds the same streams. A seed is therefore never added to a
number: `numpy.random.SeedSequence` mixes it with everything that tells one stream from another.
"""

import numpy as np

_WORD = 2**32


def derived(seed: int, purpose: str, *numbers: int) -> int:
    """The seed of one stream, of 63 bits.

    Args:
        seed: what the user chose, or was itself derived; from 0, below 2**128.
        purpose: what the stream is for; other purposes have other streams.
        numbers: which one it is (fold, member, round, …), each from 0, below 2**64.

    Raises:
        ValueError: a number is out of range.
    """
    for name, value, bits in (("seed", seed, 128), *((purpose, number, 64) for number in numbers)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} is {value}, expected a whole number from 0, below 2**{bits}")
    text = purpose.encode()
    # Of fixed length or preceded by its length: no two keys are the same words.
    key = (len(text), *text, *(word for number in numbers for word in divmod(int(number), _WORD)))
    return int(np.random.SeedSequence(int(seed), spawn_key=key).generate_state(1, np.uint64)[0] >> 1)


def slot_seeds(seed: int, n: int) -> list[int]:
    """Seeds of the N environments of a vector; the first has the seed itself, as a single environment has.

    >>> slot_seeds(7, 3)[0], len(set(slot_seeds(7, 3) + slot_seeds(8, 3)))
    (7, 6)
    """
    return [seed, *(derived(seed, "slot", i) for i in range(1, n))]
