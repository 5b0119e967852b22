"""Engines that share blocks while nothing, or much, goes wrong."""

from random import Random

from p2pkv.sim.faults import Churn, Faults
from p2pkv.sim.prompts import Load
from p2pkv.sim.story import Story


def block_traffic(nodes: int, chance: Random) -> Story:  # noqa: ARG001 - the engines draw for themselves
    """Engines ask for prompts with common beginnings, fetch what others have and compute the rest.

    Prefixes outgrow the tiers, so blocks are evicted all the time, and summaries are always a little behind. Every
    engine gets its answer in time, and half a minute after the last prompt nothing is held any more.
    """
    return Story(load=Load(start_s=5.0, end_s=80.0, requests_per_s=0.06), settles_s=10.0)


def block_traffic_under_churn(nodes: int, chance: Random) -> Story:  # noqa: ARG001 - the same
    """The same while nodes come and go, with their blocks or without, and datagrams are lost.

    A peer that is asked may be gone, may be another process than the one that claimed the blocks, or may have evicted
    them. The worst that comes of it is a shorter prefix.
    """
    faults = Faults(loss=0.02, churn=(Churn(10.0, 65.0, per_minute=12.0, away_s=8.0),))
    return Story(faults=faults, load=Load(start_s=5.0, end_s=75.0, requests_per_s=0.1), settles_s=30.0)
