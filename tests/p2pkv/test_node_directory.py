"""When a node asks the directory, and what it makes of the answers: whole nodes with few summaries or none."""

from p2pkv.index.anchors import anchor_of
from p2pkv.transport.wire import DirectoryAnswer, DirectoryPut, DirectoryResend, LeaseRequest, SummaryPage
from tests.p2pkv.test_node import CHAIN, Mesh, key, leased, met

LONG = [key(9000 + i) for i in range(70)]


def asked(mesh: Mesh, name: str) -> int:
    return mesh.nodes[name].directory.statistics().asked


def filters(mesh: Mesh, name: str) -> int:
    return mesh.nodes[name].summaries.statistics().peers_with_filter


def located(mesh: Mesh, name: str, one: bytes) -> dict[str, set[str]]:
    """By owner, whom it names as holder."""
    numbers: list[int] = []

    def verb(node):  # type: ignore[no-untyped-def]
        number, effects = node.locate_in_directory(one, mesh.now)
        numbers.append(number)
        return effects

    mesh.do(name, verb)
    mesh.run(1.0, until=lambda: numbers[0] in mesh.located)
    said: dict[str, set[str]] = {}
    for claim in mesh.located[numbers[0]].claims:
        said.setdefault(claim.owner, set()).add(claim.holder)
    return said


def test_without_summaries_the_directory_alone_finds_a_chain() -> None:
    mesh = met("abcd", peers_max=0)
    mesh.hold_chain("a", LONG)
    mesh.run(2.0)
    assert filters(mesh, "d") == 0
    assert mesh.nodes["d"].match(LONG).reachable == 0
    acquired = mesh.acquire("d", LONG)
    assert leased(acquired) == LONG
    assert set(acquired.sources) == {"a"}
    assert asked(mesh, "d") == 1
    mesh.run(2.0)
    assert all(holders == {"a", "d"} for holders in located(mesh, "b", LONG[32]).values()), "the copy is recorded, too"


def test_what_is_here_already_is_not_asked_for_again() -> None:
    mesh = met("abc", peers_max=0)
    mesh.hold_chain("a", LONG)
    mesh.hold_chain("c", LONG[:40])
    mesh.run(2.0)
    assert leased(mesh.acquire("c", LONG)) == LONG
    acquired = mesh.acquire("b", LONG, first=50)
    assert leased(acquired) == LONG[50:]


def test_where_all_summaries_are_known_nobody_is_asked() -> None:
    mesh = met("abc")
    mesh.hold_chain("a", LONG)
    mesh.run(2.0)
    assert leased(mesh.acquire("b", LONG)) == LONG
    assert leased(mesh.acquire("b", CHAIN)) == []
    assert asked(mesh, "b") == 0


def test_of_more_members_than_may_be_summaries_of_some_are_kept_and_the_rest_is_asked_for() -> None:
    mesh = met("abcdefgh", peers_max=2)
    mesh.run(5.0)
    chains = {name: [key(100 * (1 + i) + j) for j in range(10)] for i, name in enumerate("abcdefg")}
    for name, chain in chains.items():
        mesh.hold_chain(name, chain)
    mesh.run(3.0)
    assert filters(mesh, "h") == 2
    for chain in chains.values():
        assert leased(mesh.acquire("h", chain)) == chain
    assert asked(mesh, "h") == 5


def test_members_beyond_the_bound_are_told_to_send_no_summary_until_there_is_room() -> None:
    mesh = met("abcd", peers_max=1)
    mesh.run(5.0)
    (followed,) = (name for name in "abc" if name in mesh.nodes["d"].summaries._subset)
    for i, name in enumerate("abc"):  # who was declined before it knew d says one thing more, and is declined again
        mesh.hold(name, key(400 + i))
    mesh.run(3.0)
    sent: list[str] = []
    listen = mesh.nodes["d"].on_message

    def noting(sender, message, now):  # type: ignore[no-untyped-def]
        if isinstance(message, SummaryPage) or type(message).__name__ == "SummaryDelta":
            sent.append(sender)
        return listen(sender, message, now)

    mesh.nodes["d"].on_message = noting  # type: ignore[method-assign]
    for i, name in enumerate("abc"):
        mesh.hold(name, *(key(500 * (1 + i) + j) for j in range(50)))
    mesh.run(3.0)
    assert set(sent) == {followed}
    mesh.do(followed, lambda node: node.leave(mesh.now))
    mesh.run(5.0)
    assert len(set(sent)) == 2, "another moved up, and was asked"
    assert filters(mesh, "d") == 1


def test_a_holder_that_a_summary_named_wrongly_is_replaced_by_one_that_the_directory_names() -> None:
    mesh = met("abcd", peers_max=1)
    mesh.run(5.0)
    (followed,) = (name for name in "abc" if name in mesh.nodes["d"].summaries._subset)
    other = next(name for name in "abc" if name != followed)
    mesh.hold_chain(followed, LONG)
    mesh.hold_chain(other, LONG)
    mesh.run(3.0)
    for one in LONG:
        mesh.nodes[followed].ledger.drop(one)  # its summary and its records still say that it has them
    acquired = mesh.acquire("d", LONG)
    assert leased(acquired) == LONG
    assert set(acquired.sources) == {other}
    assert asked(mesh, "d") == 1


def test_a_lying_owner_costs_a_miss_and_nothing_else() -> None:
    """It names a holder that has nothing, one that is no member, and the asker itself."""
    mesh = met("abc", peers_max=0)
    mesh.hold_chain("a", LONG)
    mesh.run(2.0)
    for liar in "ac":
        honest = mesh.nodes[liar].on_message

        def lying(sender, message, now, honest=honest):  # type: ignore[no-untyped-def]
            effects = honest(sender, message, now)
            return tuple(
                type(one)(one.address, DirectoryAnswer(one.message.request, ("c", "z", sender), b"\x00\x00\x00\x20\x00\x00\x01\x20\x00\x00\x02\x20"))
                if isinstance(getattr(one, "message", None), DirectoryAnswer)
                else one
                for one in effects
            )  # fmt: skip

        mesh.nodes[liar].on_message = lying  # type: ignore[method-assign]
    wanted = [key(7000 + i) for i in range(5)]
    acquired = mesh.acquire("b", wanted)
    assert leased(acquired) == []
    assert "absent" in acquired.reason or "no peer claims" in acquired.reason
    assert mesh.nodes["b"].links.cold(mesh.now) == (), "the peer that was named is not blamed"


def test_an_owner_that_never_answers_costs_the_timeout() -> None:
    mesh = met("abc", peers_max=0)
    mesh.run(2.0)
    mesh.nodes["b"].ring(mesh.now)
    wanted = LONG[:5]
    for name in "ac":
        honest = mesh.nodes[name].on_message
        mesh.nodes[name].on_message = lambda sender, message, now, honest=honest: (  # type: ignore[method-assign]
            () if type(message).__name__ == "DirectoryAsk" else honest(sender, message, now)
        )
    began = mesh.now
    acquired = mesh.acquire("b", wanted)
    assert leased(acquired) == []
    assert mesh.now - began <= mesh.nodes["b"].config.directory.timeout_s + 0.01
    assert mesh.nodes["b"].directory.statistics().timeouts >= 1


def test_a_node_alone_asks_nobody_and_its_acquires_end_at_once() -> None:
    mesh = Mesh("a")
    assert leased(mesh.acquire("a", LONG)) == []
    assert mesh.now == 0.0


def test_an_evicted_block_is_withdrawn() -> None:
    mesh = met("abc", peers_max=0)
    mesh.hold_chain("a", LONG[:40])
    mesh.run(2.0)
    assert located(mesh, "b", LONG[0]) != {}
    mesh.flood("a")
    mesh.run(4.0)
    assert located(mesh, "b", LONG[0]) == {}
    assert mesh.nodes["a"].directory.place(LONG[0]) is None


def test_a_lookup_of_a_held_block_speaks_of_its_stretch() -> None:
    mesh = met("ab")
    mesh.hold_chain("a", LONG)
    mesh.run(2.0)
    assert mesh.nodes["a"].directory.place(LONG[40]) == (anchor_of(LONG[32]), 8)
    assert mesh.nodes["b"].directory.place(LONG[40]) is None


def test_directory_messages_of_strangers_are_not_listened_to() -> None:
    mesh = met("ab")
    for message in (DirectoryResend(), DirectoryPut("z", 1, 1000, 0, b"x" * 16, b"\x01")):
        assert mesh.nodes["a"].on_message("z", message, mesh.now) == ()
    assert mesh.nodes["a"].directory.statistics().from_strangers == 2


def test_a_holder_named_twice_is_asked_for_its_blocks_once() -> None:
    mesh = met("abc", peers_max=0)
    mesh.hold_chain("a", LONG)
    mesh.run(2.0)
    requests: list[LeaseRequest] = []
    honest = mesh.nodes["a"].on_message

    def noting(sender, message, now):  # type: ignore[no-untyped-def]
        if isinstance(message, LeaseRequest):
            requests.append(message)
        return honest(sender, message, now)

    mesh.nodes["a"].on_message = noting  # type: ignore[method-assign]
    assert leased(mesh.acquire("b", LONG)) == LONG
    assert len(requests) == 1
