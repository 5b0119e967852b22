"""The directory while members come and go, in the simulator: what is lost, for how long, and what never is.

Nodes hold no summaries here, so that every answer is the directory's.
"""

from collections.abc import Sequence

import msgspec
import pytest

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.config import Config, load
from p2pkv.node import Effect, Located, Node
from p2pkv.sim.faults import Crash, Faults, Partition
from p2pkv.sim.world import World, id_of

NODES = 12
LEASE_S = 20.0
CHAINS = [[BlockKey(bytes([chain, depth]) * 16) for depth in range(40)] for chain in range(6)]
seeds = pytest.mark.parametrize("seed", [1, 2, 3])


def config() -> Config:
    base = load(environment={}, profile="loopback")
    return msgspec.structs.replace(
        base,
        summary=msgspec.structs.replace(base.summary, peers_max=0, blocks_expected=64),
        directory=msgspec.structs.replace(base.directory, lease_s=LEASE_S),
    )


class Directories(World):
    """A world in which blocks are held and looked up."""

    def __init__(self, seed: int, faults: Faults, *, nodes: int = NODES, late: int = 0) -> None:
        super().__init__(nodes=nodes + late, seed=seed, config=config(), faults=faults)
        self.located: dict[tuple[int, int], Located] = {}
        self.held: dict[int, set[int]] = {}
        """By node, the chains it holds."""
        for number in range(nodes):
            self.start(number, at_s=0.05 * number)

    def _perform(self, number: int, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Located):
                self.located[number, effect.locate] = effect
        super()._perform(number, effects)

    def hold(self, number: int, chain: int) -> None:
        def verb(node: Node, now: float) -> tuple[Effect, ...]:
            for depth, key in enumerate(CHAINS[chain]):
                reservation = node.reserve(BlockInfo(key, bytes(32), 4096, 4096, bytes(16)), now)
                assert reservation is not None
                node.commit(reservation, now, depth, CHAINS[chain][depth - 1] if depth else None)
            return ()

        self.held.setdefault(number, set()).add(chain)
        self.tell(number, b"directory", verb)

    def spread(self) -> None:
        """Have every chain held by two nodes."""
        for chain in range(len(CHAINS)):
            self.hold(chain, chain)
            self.hold((chain * 5 + 7) % NODES, chain)

    def lookups(self) -> dict[tuple[int, int], set[str]]:
        """Have every running node ask for every chain; return whom it was told of. Takes a second."""
        asked: dict[tuple[int, int], tuple[int, int]] = {}
        for number, _ in self.running():
            for chain, keys in enumerate(CHAINS):

                def verb(node: Node, now: float, number=number, chain=chain, key=keys[0]) -> tuple[Effect, ...]:
                    locate, effects = node.locate_in_directory(key, now)
                    asked[number, chain] = (number, locate)
                    return effects

                self.tell(number, b"directory", verb)
        self.run(self.now_us / 1e6 + 1.0)
        return {
            about: {claim.holder for claim in self.located[one].claims if claim.holder != id_of(about[0])}
            for about, one in asked.items()
        }

    def truth(self, asker: int, chain: int, *, among: set[int] | None = None) -> set[str]:
        return {
            id_of(number)
            for number, chains in self.held.items()
            if chain in chains and number != asker and self.is_running(number) and (among is None or number in among)
        }

    def wrong(self) -> set[tuple[int, int]]:
        """(asker, chain) of the questions whose answer names too few or too many now."""
        return {about for about, holders in self.lookups().items() if holders != self.truth(*about)}

    def blind(self) -> set[tuple[int, int]]:
        """(asker, chain) of the questions that got nobody named who has the chain."""
        return {
            about
            for about, holders in self.lookups().items()
            if self.truth(*about) and not holders & self.truth(*about)
        }


@seeds
def test_once_all_have_met_every_node_learns_who_holds_what(seed: int) -> None:
    world = Directories(seed, Faults(loss=0.05))
    world.run(5.0)
    world.spread()
    world.run(8.0)
    assert world.wrong() == set()


@seeds
def test_what_is_published_while_nodes_still_join_is_found_too(seed: int) -> None:
    world = Directories(seed, Faults(loss=0.05))
    world.run(1.0)
    world.spread()
    world.run(1.0 + LEASE_S / 2)
    assert world.wrong() == set()


@pytest.mark.slow
def test_forty_that_join_within_two_seconds_with_blocks_of_their_own_are_all_found() -> None:
    world = Directories(1, Faults(loss=0.05), nodes=40)
    for number in range(40):
        world.run(0.05 * number + 0.04)
        world.hold(number, number % len(CHAINS))
    world.run(3.0 + LEASE_S / 2)
    assert world.wrong() == set()
    sent = [node.directory.statistics() for _, node in world.running()]
    assert sum(one.resends for one in sent) <= 5 * len(sent), "what went astray is sent again, and not for ever"


@seeds
def test_crashes_lose_no_answer_for_longer_than_a_lease(seed: int) -> None:
    """Three nodes at once, so that some stretch may lose both owners; their own records go with them."""
    dead = [(seed + 3) % NODES, (seed + 7) % NODES, (seed + 8) % NODES]
    world = Directories(seed, Faults(crashes=tuple(Crash(at_s=10.0, node=node) for node in dead)))
    world.run(5.0)
    world.spread()
    world.run(8.0)
    assert world.wrong() == set()
    since: dict[tuple[int, int], float] = {}
    longest = 0.0
    while world.now_us < 60e6:
        now, blind = world.now_us / 1e6, world.blind()
        since = {about: since.get(about, now) for about in blind}
        longest = max([longest, *(now - at for at in since.values())])
    assert longest < LEASE_S
    assert world.wrong() == set()


@seeds
def test_a_node_that_has_just_joined_is_answered(seed: int) -> None:
    world = Directories(seed, Faults(), late=1)
    world.run(5.0)
    world.spread()
    world.run(12.0)
    world.start(NODES, at_s=12.1)
    world.run(12.7)
    assert world.is_running(NODES)
    assert world.blind() == set(), "half a second after it came"
    world.run(20.0)
    assert world.wrong() == set()


@seeds
def test_a_partition_leaves_each_half_its_own_answers_and_heals(seed: int) -> None:
    island = frozenset(range(NODES // 2))
    world = Directories(seed, Faults(partitions=(Partition(start_s=10.0, end_s=50.0, island=island),)))
    world.run(5.0)
    world.spread()
    world.run(8.0)
    assert world.wrong() == set()
    world.run(48.0)
    answers = world.lookups()
    for (asker, chain), holders in answers.items():
        side = set(island) if asker in island else set(range(NODES)) - island
        assert holders == world.truth(asker, chain, among=side)
    world.run(50.0 + 60.0 + LEASE_S)
    assert world.wrong() == set()


def test_a_seed_is_a_run() -> None:
    hashes = set()
    for _ in range(2):
        world = Directories(7, Faults(loss=0.1, crashes=(Crash(at_s=6.0, node=4),)))
        world.run(3.0)
        world.spread()
        world.run(20.0)
        world.lookups()
        hashes.add(world.trace_hash)
    assert len(hashes) == 1
