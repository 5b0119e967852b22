"""How much of a chain each peer holds, from claims of the announced keys alone (announce.py).

The leading run over the landmarks gives a length that each earlier landmark has confirmed: of n peers that hold nothing
of it, n p^r are believed to hold r landmarks, where bisection would believe n p of them. For the peers with the longest
runs, of up to four different lengths, the keys up to the next landmark are looked at as well, for the tip; others may be
up to seven blocks deeper than their length says. For choosing among holders that is a tie, which load decides.

A length may be too large: a false positive adds a step, with probability p, or part of one, with up to 7 p where tips are looked for;
or a block within a step is not there. The holder says so when it is asked, and the prefix gets shorter.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Final

from p2pkv.index.announce import STEP, landmarks
from p2pkv.index.matcher import Matcher

TIPS_MAX: Final = 4
"""Lengths, from the longest down, that are looked at between two landmarks; each costs up to seven keys more."""

_LENGTHS_MAX: Final = 256
"""Lengths of chains of which it is remembered where their landmarks are, some KB each."""


def lengths(matcher: Matcher, keys: Sequence[bytes], base: int = 0) -> dict[str, int]:
    """Return for each peer that seems to hold a prefix of `keys`, a chain from its root, its length in blocks.

    With `base`, for each that seems to hold what comes behind the first `base` blocks, whoever has those. Lengths count from the root
    all the same. Nothing between two landmarks confirms what lies before the first one asked for, so a false positive adds up
    to seven blocks there, with probability 7 p.
    """
    if len(keys) <= STEP:  # all of them are landmarks
        few = matcher.longest_of_few(keys[base:])
        return {peer: base + run for peer, run in few.items()} if base else few
    marks, stops, choose = _landmarks_of(len(keys), base)
    runs = matcher.runs(choose(keys)).tolist()
    tips: dict[int, Sequence[bytes]] = {}
    for run in sorted(set(runs))[-TIPS_MAX:]:
        start, stop = stops[run], marks[run] if run < len(marks) else len(keys)
        if (run or base) and start < stop:
            tips[run] = keys[start:stop]
    if not tips:
        return {peer: stops[run] for peer, run in zip(matcher.peers(), runs, strict=True) if run}
    more = dict(zip(tips, matcher.last_claimed(list(tips.values())).tolist(), strict=True))
    return {
        peer: stops[run] + (more[run][place] if run in more else 0)
        for place, (peer, run) in enumerate(zip(matcher.peers(), runs, strict=True))
        if run or (base and 0 in more and more[0][place])
    }


@lru_cache(_LENGTHS_MAX)
def _landmarks_of(blocks: int, base: int) -> tuple[list[int], list[int], Callable[[Sequence[bytes]], Sequence[bytes]]]:
    """Return the landmarks of a chain of more than `STEP` blocks, what it is sure to have by their number, and their keys.

    Of those behind `base` alone.
    """
    marks = [depth for depth in landmarks(blocks) if depth >= base]
    choose = itemgetter(*marks) if len(marks) > 1 else itemgetter(slice(marks[0], marks[0] + 1) if marks else slice(0))
    return marks, [base, *(depth + 1 for depth in marks)], choose
