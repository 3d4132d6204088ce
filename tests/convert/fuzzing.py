"""Bounded mutation fuzzing: seeded; half a second each in the test suite, longer with REFUSAL_EDGE_FUZZ_SECONDS."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence

from refusal_edge.errors import RefusalEdgeError

SECONDS = float(os.environ.get("REFUSAL_EDGE_FUZZ_SECONDS", "0.5"))
SEED = int(os.environ.get("REFUSAL_EDGE_FUZZ_SEED", "1"))
NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    9,
    12,
    13,
    31,
    32,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**34,
    2**62,
    2**63,
    2**64 - 1,
)


def mutations(seeds: Sequence[bytes], seconds: float = SECONDS) -> Iterator[tuple[int, bytes]]:
    """(number, mutant) until the time is up; the same number is the same mutant for the same seed."""
    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        rng = random.Random(f"{SEED}/{number}")
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            _mutate(data, rng)
        yield number, bytes(data)
        number += 1


def message_of(number: int, call: Callable[[], object]) -> str | None:
    """The message of our error, None if there was none; any other error is a finding, and so is a slow call."""
    started = time.perf_counter()
    try:
        call()
        message = None
    except RefusalEdgeError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"mutant {number}: {error!r}") from error
    assert time.perf_counter() - started < 2.0, f"mutant {number} is slow"
    assert message is None or "\n" not in message, f"mutant {number}: {message!r}"
    return message


def _mutate(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
    elif kind == 2:
        data[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
    elif kind == 3:
        del data[at : at + rng.randint(1, 16)]
    elif kind == 4:
        source = rng.randrange(len(data) + 1)
        data[at:at] = data[source : source + rng.randint(1, 64)]
    else:
        del data[at:]
