"""Key commands through the composed node: members are obeyed, strangers are not, and its one deadline covers rounds."""

from random import Random

from p2pkv.config import Config, HostConfig
from p2pkv.effects import SendStream
from p2pkv.node import Node
from p2pkv.own_keyring import INSTALL, LIST, StoreKeyring
from p2pkv.rotation import RETRY_S, RoundEnded
from p2pkv.transport.keyring import KeyRing, fingerprint
from p2pkv.transport.wire import KeyCommand, KeyReport, MemberRecord, PushPull

A, B = bytes([1]) * 32, bytes([2]) * 32


def record(name: str) -> MemberRecord:
    return MemberRecord(name, 1, 0, 0, name, f"{name}:1")


def node_that_knows(*names: str, ring: KeyRing | None) -> Node:
    node = Node(Config(host=HostConfig(capacity_bytes=1 << 20)), record("a"), Random(1), ring=ring)
    node.on_time(0.0)
    for name in names:
        node.on_message(name, PushPull((record(name),), reply=False), 0.0)
    return node


def test_a_member_is_obeyed_once_the_ring_is_stored() -> None:
    node = node_that_knows("b", ring=KeyRing((A,)))
    (store,) = node.on_message("b", KeyCommand(7, INSTALL, B), 1.0)
    assert isinstance(store, StoreKeyring)
    effects = node.rotation.on_stored(store.number, 1.0)
    assert SendStream("b:1", KeyReport(7, (fingerprint(A), fingerprint(B)))) in effects


def test_a_stranger_is_not_obeyed_and_a_node_without_a_ring_obeys_nobody() -> None:
    node = node_that_knows("b", ring=KeyRing((A,)))
    assert node.on_message("stranger", KeyCommand(7, INSTALL, B), 1.0) == ()
    assert node.statistics().unknown_senders == 1
    without = node_that_knows("b", ring=None)
    (answer,) = without.on_message("b", KeyCommand(7, INSTALL, B), 1.0)
    assert answer == SendStream("b:1", KeyReport(7, (), "no keyring here"))


def test_a_round_is_driven_by_the_nodes_own_timer_and_answers() -> None:
    node = node_that_knows("b", ring=KeyRing((A,)))
    node.on_time(100.0)
    number, effects = node.rotation.start(LIST, b"", deadline=109.0, force=False, now=100.0)
    (command,) = [effect.message for effect in effects if isinstance(effect, SendStream)]
    assert isinstance(command, KeyCommand)
    assert node.next_deadline() <= 100.0 + RETRY_S
    again = [effect for effect in node.on_time(101.0) if isinstance(effect, SendStream)]
    assert SendStream("b:1", command) in again
    effects = node.on_message("b", KeyReport(command.request, (fingerprint(A),)), 101.5)
    (ended,) = effects
    assert isinstance(ended, RoundEnded)
    assert (ended.round, ended.obeyed) == (number, True)
