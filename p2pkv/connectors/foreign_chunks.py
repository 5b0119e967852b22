"""Chunks that another cache names and packs, as blocks: what connectors to such caches share, without those caches.

The other cache has a text for each chunk that says all that decides its values, prefix included; our key is a hash of it under
the namespace. Bodies are what the other cache makes of them, in front of them a header of its own, and may differ in length.

A claim is a pin: `find` brings chunks here, checks them and keeps them for a while, and only those count. So what was claimed can be
read. Nothing here raises for the mesh's sake; what failed is a miss, and `failures` counts it.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from p2pkv.blocks import BlockInfo, BlockKey, Namespace
from p2pkv.client import Client, Lease
from p2pkv.errors import P2pkvError

_PERSON: Final = b"p2pkv-foreign"
_DIGEST_LATER: Final = bytes(16)
"""The client takes the digest of what it stages."""
HELD_MAX: Final = 64
"""Claims that are kept at a time; the oldest goes first. A daemon lets a client have more leases than this."""


def foreign_key(namespace: Namespace, name: str) -> BlockKey:
    """Return the key of the chunk that another cache calls `name`."""
    return BlockKey(hashlib.blake2b(name.encode(), key=namespace.digest, digest_size=32, person=_PERSON).digest())


class ForeignChunks:
    """Chunks of one namespace at one node. Thread-safe; calls block for `timeout_s` and a little."""

    def __init__(
        self,
        client: Client,
        namespace: Namespace,
        *,
        timeout_s: float = 1.0,
        hold_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_s` is for bringing chunks here, `hold_s` how long a claim stands."""
        self._client = client
        self._namespace = namespace
        self._digest: Final = namespace.digest
        self._timeout_s = timeout_s
        self._hold_s = hold_s
        self._clock = clock
        self._lock = threading.Lock()
        self._held: OrderedDict[BlockKey, tuple[float, Lease, int]] = OrderedDict()
        """First key of a claim -> (until when, its lease, how many blocks); those of later keys are found through it."""
        self._where: dict[BlockKey, tuple[BlockKey, int]] = {}
        """Key -> (first key of the newest claim that has it, place in that)."""
        self.failures = 0
        self.last_failure = ""

    def find(self, names: Sequence[str]) -> int:
        """Bring the chunks of a prefix here, and return how many of them, from the first on, are here and stay so for `hold_s`."""
        if not names:
            return 0
        keys = [foreign_key(self._namespace, name) for name in names]
        try:
            lease = self._client.acquire(keys, timeout_s=self._timeout_s)
        except P2pkvError as exc:
            return self._failed(exc)
        found = len(lease.blocks)
        with self._lock:
            self._let_go(self._clock())
            if found:
                self._keep(keys[:found], lease)
        if not found:
            lease.release()
        return found

    def read(self, names: Sequence[str], take: Callable[[int, memoryview], bool]) -> int:
        """Hand the bodies of a prefix to `take`, and return how many of them, from the first on, it has.

        Args:
            names: of the chunks.
            take: `take(i, body)` copies chunk `i`, read-only, and returns False to end here, as where there is no room. What it
                copied is good only if `i` is below what is returned.
        """
        keys = [foreign_key(self._namespace, name) for name in names]
        done = 0
        while done < len(keys):
            lease, place, release = self._leased(keys[done:])
            if lease is None:
                break
            count, first = 0, done
            try:
                while place + count < len(lease.blocks) and done < len(keys):
                    if lease.blocks[place + count].key != keys[done] or not take(done, lease.view(place + count)):
                        break
                    count, done = count + 1, done + 1
            except P2pkvError as exc:
                self._failed(exc)
            good = lease.intact()
            if release:
                lease.release()
            if not good:  # a copy may be half of another block
                return first
            if not count:
                break
        return done

    def write(self, name: str, header: bytes, body: memoryview) -> bool:
        """Offer a chunk to the mesh; say whether it is there now."""
        key = foreign_key(self._namespace, name)
        whole = bytearray(len(header) + body.nbytes)
        whole[: len(header)] = header
        whole[len(header) :] = body.cast("B")
        info = BlockInfo(key, self._digest, len(whole), len(whole), _DIGEST_LATER)
        try:
            published = self._client.store(info, whole)
        except P2pkvError as exc:
            self._failed(exc)
            return False
        if published.refused:
            self.failures += 1
            self.last_failure = published.reason
        return not published.refused

    def answers(self) -> bool:
        """Say whether the node does."""
        try:
            self._client.status()
        except P2pkvError as exc:
            self._failed(exc)
            return False
        return True

    def close(self) -> None:
        """Let go of all claims, and of the client."""
        with self._lock:
            for _, lease, _ in self._held.values():
                lease.release()
            self._held.clear()
            self._where.clear()
        self._client.close()

    def _leased(self, keys: Sequence[BlockKey]) -> tuple[Lease | None, int, bool]:
        """Return a lease that has the first of `keys`, its place there, and whether the caller is to release it."""
        with self._lock:
            now = self._clock()
            self._let_go(now)
            where = self._where.get(keys[0])
            if where is not None:
                return self._held[where[0]][1], where[1], False
        try:
            lease = self._client.acquire(keys, timeout_s=self._timeout_s)
        except P2pkvError as exc:
            self._failed(exc)
            return None, 0, False
        if not lease.blocks:
            lease.release()
            return None, 0, False
        return lease, 0, True

    def _keep(self, keys: Sequence[BlockKey], lease: Lease) -> None:
        if keys[0] in self._held:
            self._drop(keys[0])
        elif len(self._held) >= HELD_MAX:
            self._drop(next(iter(self._held)))
        self._held[keys[0]] = (self._clock() + self._hold_s, lease, len(keys))
        self._where |= {key: (keys[0], place) for place, key in enumerate(keys)}

    def _let_go(self, now: float) -> None:
        while self._held:
            first, (until, _, _) = next(iter(self._held.items()))
            if until > now:
                return
            self._drop(first)

    def _drop(self, first: BlockKey) -> None:
        _, lease, _ = self._held.pop(first)
        self._where = {key: where for key, where in self._where.items() if where[0] != first}
        lease.release()

    def _failed(self, exc: P2pkvError) -> int:
        self.failures += 1
        self.last_failure = str(exc)
        return 0
