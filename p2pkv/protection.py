"""The shell around a node's keyring: reads it at start, stores changes, and lets a person's key command wait for its end."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from p2pkv.config import SecurityConfig
from p2pkv.errors import ConfigError
from p2pkv.keyring_file import read_keyring, ring_text, write_keyring
from p2pkv.local_wire import KeyHolder, KeysReply, KeysRequest
from p2pkv.mesh.members import MemberState
from p2pkv.node import Effect, Node
from p2pkv.own_keyring import StoreKeyring
from p2pkv.rotation import MemberKeys, RoundEnded
from p2pkv.runner import Runner
from p2pkv.transport.bulk_protection import TEXTS, accepted
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.seal import DatagramSeal, NoSeal


class Protection:
    """What is encrypted with, or nothing."""

    def __init__(self, config: SecurityConfig) -> None:
        """Read the keyring, if one is configured.

        Raises:
            ConfigError: it is not there, not safe, or no keyring.
        """
        self._path: Final = Path(config.keyring).expanduser() if config.keyring else None
        self.bulk: Final = config.bulk_protection
        self.bulk_bits: Final = accepted(config.bulk_protection)
        """What this node says in greetings."""
        self._ring = read_keyring(self._path) if self._path is not None else None
        self._waiting: dict[int, tuple[trio.Event, list[RoundEnded]]] = {}
        self._storing = trio.Lock()  # fair: changes reach the disk in the order they were made

    @property
    def ring(self) -> KeyRing | None:
        """The keyring in force."""
        return self._ring

    @property
    def rings(self) -> Callable[[], KeyRing] | None:
        """A question for the keyring in force, for those who need it anew each time; None if there is no encryption."""
        return self._ring_now if self._ring is not None else None

    def _ring_now(self) -> KeyRing:
        assert self._ring is not None, "a keyring is never taken away while the node runs"
        return self._ring

    def datagrams(self, *, node_id: str, boot: int) -> DatagramSeal | NoSeal:
        """Return what seals this node's datagrams."""
        rings = self.rings
        return DatagramSeal(node_id=node_id, boot=boot, ring=rings) if rings is not None else NoSeal()

    def text(self, *, loopback: bool) -> str:
        """Return what status says of the keyring."""
        if self._ring is not None:
            return f"AES-256-GCM, {ring_text(self._ring)}"
        return "none, loopback only" if loopback else "none (insecure)"

    def text_of_blocks(self, *, loopback: bool) -> str:
        """Return what status says of blocks over TCP, where there is no certificate."""
        if self._ring is not None:
            return f"{TEXTS[self.bulk]}, {ring_text(self._ring)}"
        return self.text(loopback=loopback)

    def attach(self, runner: Runner, nursery: trio.Nursery) -> None:
        """Carry out what the node says of keys from now on."""
        runner.on_store = lambda store: nursery.start_soon(self._store, runner, store)
        runner.on_round = self._ended

    async def carry_out(self, runner: Runner, request: KeysRequest) -> KeysReply:
        """Lead one round and return its result.

        Raises:
            ConfigError: nothing was begun.
        """
        deadline = trio.current_time() + request.timeout_ms / 1000
        key: bytes | str = request.key or request.name
        event, result = trio.Event(), list[RoundEnded]()
        ended: list[int] = []

        def verb(node: Node, now: float) -> tuple[int, tuple[Effect, ...]]:
            number, effects = node.rotation.start(request.action, key, deadline=deadline, force=request.force, now=now)
            self._waiting[number] = (event, result)
            ended.append(number)
            return number, effects

        runner.call(verb)
        try:
            await event.wait()
        finally:
            self._waiting.pop(ended[0], None)
        done = result[0]
        ring = self._ring.fingerprints() if self._ring is not None else ()
        return KeysReply(
            obeyed=done.obeyed,
            reason=done.reason,
            keys=tuple(name.hex() for name in ring),
            members=tuple(_holder(one) for one in done.members),
        )

    def _ended(self, done: RoundEnded) -> None:
        waiter = self._waiting.get(done.round)
        if waiter is not None:
            event, result = waiter
            result.append(done)
            event.set()

    async def _store(self, runner: Runner, store: StoreKeyring) -> None:
        """Put a ring on disk, then use it, then say so. Not cut short: half the effects of one would be a lost key."""
        assert self._path is not None
        error = ""
        with trio.CancelScope(shield=True):
            async with self._storing:
                try:
                    await trio.to_thread.run_sync(write_keyring, self._path, store.ring)
                    self._ring = store.ring
                except ConfigError as exc:
                    error = str(exc)
        runner.tell(lambda node, now: node.rotation.on_stored(store.number, now, error=error))


def _holder(one: MemberKeys) -> KeyHolder:
    return KeyHolder(
        id=one.member.id,
        name=one.member.name,
        address=one.member.address,
        state=MemberState(one.member.state).name.lower(),
        answered=one.fingerprints is not None,
        keys=tuple(name.hex() for name in one.fingerprints or ()),
        note=one.refusal,
    )
