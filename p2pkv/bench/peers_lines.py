"""What all measured programs share: requests and answers as JSON lines, blocks that can be recognised, cold places.

Imported by programs that run under another Python (see `requirements/bench-peers.txt`), so nothing of ours and nothing
but NumPy is imported here.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Handler = Callable[..., Any]
_SEED: Final = 1
_ALIGNED: Final = 4096


def claim_stdout() -> IO[str]:
    """Return standard output, and send what libraries print there to the log: call this before anything is imported."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def answer_lines(answers: IO[str], handlers: Mapping[str, Handler]) -> None:
    """Answer `{"do": name, ...}` lines with what the handler of that name returns, until standard input ends.

    Leaves without cleaning up: several of the libraries crash or hang when their process ends in good order.
    """
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = {"ok": handlers[request.pop("do")](**request)}
        except Exception as exc:  # noqa: BLE001 - whoever measures is told, and decides
            result = {"error": f"{type(exc).__name__}: {exc}"}
        answers.write(json.dumps(result) + "\n")
        answers.flush()
    os._exit(0)


def lease_blocks(lease: int, per_lease: int, blocks: int) -> list[int]:
    """Return the numbers of the blocks of the `lease`-th run, round and round through all blocks."""
    return [(lease * per_lease + i) % blocks for i in range(per_lease)]


def area(total_bytes: int) -> Bytes:
    """Return page-aligned memory that was touched."""
    raw = np.zeros(total_bytes + _ALIGNED, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    out = raw[start : start + total_bytes]
    out[::_ALIGNED] = 1
    return out


def fill(number: int, destination: Bytes) -> None:
    """Write the bytes of block `number`: its number, then noise that is the same for all."""
    noise = _noise()
    for start in range(0, len(destination), len(noise)):
        part = destination[start : start + len(noise)]
        part[:] = noise[: len(part)]
    destination[:8] = np.frombuffer(number.to_bytes(8, "little"), dtype=np.uint8)


def is_block(number: int, body: Bytes) -> bool:
    """Say whether `body` is block `number`, whole."""
    right = np.empty(len(body), dtype=np.uint8)
    fill(number, right)
    return bool((right == body).all())


def timed(take: Callable[[], object]) -> float:
    """Return the seconds that `take` needs."""
    began = perf_counter()
    take()
    return perf_counter() - began


_made: list[Bytes] = []


def _noise() -> Bytes:
    if not _made:
        _made.append(np.random.default_rng(_SEED).integers(0, 256, 2**20, dtype=np.uint8))
    return _made[0]
