"""Two nodes with one id, as after a copied state folder: both know it, whatever their boot numbers are."""

from random import Random

import msgspec
import pytest

from p2pkv.config import Config, HostConfig
from p2pkv.node import Node
from p2pkv.sim.faults import Faults
from p2pkv.sim.world import FIRST, World, address_of, id_of
from p2pkv.transport.wire import MemberRecord

ORIGINAL, COPY = 3, 6


class CopiedWorld(World):
    """A world in which one node was started from a copy of another's state folder."""

    def __init__(self, *, boot: int, loss: float, seed: int = 1) -> None:
        config = Config(host=HostConfig(capacity_bytes=2**20))
        super().__init__(nodes=8, seed=seed, config=config, faults=Faults(loss=loss))
        self.copy_boot = boot

    def _make(self, number: int, boot: int) -> Node:
        if number != COPY:
            return super()._make(number, boot)
        me = MemberRecord(
            id=id_of(ORIGINAL), boot=self.copy_boot, incarnation=0, state=0, name="copy", address=address_of(COPY)
        )
        section = msgspec.structs.replace(self._config.node, join=(address_of(FIRST),))
        return Node(msgspec.structs.replace(self._config, node=section), me, Random(f"{self._seed}/copy"))

    def seen_by(self, number: int) -> set[str]:
        return {one.address for one in dict(self.running())[number].membership.duplicates()}


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("boot", [2, 1], ids=["later start", "same boot"])
def test_both_of_two_nodes_with_one_id_know_of_each_other_and_nobody_else_thinks_so(boot: int, loss: float) -> None:
    world = CopiedWorld(boot=boot, loss=loss)
    for number in range(world.size):
        world.start(number, 0.1 * number if number != COPY else 20.0)
    world.run(40.0)  # of five streams at this loss, one cannot be opened at first
    assert world.seen_by(ORIGINAL) == {address_of(COPY)}
    assert world.seen_by(COPY) == {address_of(ORIGINAL)}
    for number, _ in world.running():
        if number not in {ORIGINAL, COPY}:
            assert world.seen_by(number) == set()


def test_what_is_known_of_the_other_stays_fresh_while_both_live() -> None:
    world = CopiedWorld(boot=2, loss=0.0)
    for number in range(world.size):
        world.start(number, 0.1 * number)
    world.run(400.0)
    for number in (ORIGINAL, COPY):
        (other,) = dict(world.running())[number].membership.duplicates()
        assert other.heard_at > 300.0
