"""How much of a chain each peer holds, from claims of the announced keys alone (announce.py).

The leading run over the landmarks gives a length that each earlier landmark has confirmed: of n peers that hold nothing
of it, n p^r are believed to hold r landmarks, where bisection would believe n p of them. For the peers with the longest
runs, of up to four different lengths, the keys up to the next landmark are looked at as well, for the tip; others may be
up to seven blocks deeper than their length says. For choosing among holders that is a tie, which load decides.

A length may be too large: a false positive adds a step, with probability p, or part of one, with up to 7 p where tips are looked for;
or a block within a step is not there. The holder says so when it is asked, and the prefix gets shorter.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from p2pkv.index.announce import STEP, landmarks
from p2pkv.index.matcher import Matcher

TIPS_MAX: Final = 4
"""Lengths, from the longest down, that are looked at between two landmarks; each costs up to seven keys more."""


def lengths(matcher: Matcher, keys: Sequence[bytes]) -> dict[str, int]:
    """Return for each peer that seems to hold a prefix of `keys`, a chain from its root, its length in blocks."""
    if len(keys) <= STEP:  # all of them are landmarks
        return matcher.longest_of_few(keys)
    marks = landmarks(len(keys))
    runs = matcher.runs([keys[depth] for depth in marks])
    stops = np.array([0, *(depth + 1 for depth in marks)])
    found = stops[runs]
    tips: list[tuple[int, Sequence[bytes]]] = []
    for run in np.unique(runs[runs > 0])[-TIPS_MAX:].tolist():
        start, stop = stops[run], marks[run] if run < len(marks) else len(keys)
        if start < stop:
            tips.append((run, keys[start:stop]))
    if tips:
        last = matcher.last_claimed([part for _, part in tips])
        for (run, _), of_part in zip(tips, last, strict=True):
            found += np.where(runs == run, of_part, 0)
    return {peer: length for peer, length in zip(matcher.peers(), found.tolist(), strict=True) if length}
