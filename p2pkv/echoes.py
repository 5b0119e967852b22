"""Pings that a person asked for, outside of the schedule by which members are probed: sent, and their answers waited for."""

import secrets
from typing import Final

import trio

from p2pkv.effects import SendDatagram, SendStream
from p2pkv.runner import Runner
from p2pkv.transport.wire import MemberRecord, Packet, Ping

_FIRST: Final = 2**52
"""Where the numbers begin: membership counts its own from 0."""


class Echoes:
    """The ones of one node."""

    def __init__(self, runner: Runner, *, me: MemberRecord, cluster: str) -> None:
        self._runner = runner
        self._me = me
        self._cluster = cluster
        self._waiting: dict[int, trio.Event] = {}
        runner.on_ack = self._heard

    async def there_and_back(self, record: MemberRecord, *, stream: bool, timeout_s: float) -> float | None:
        """Return the seconds until the member has answered, by a datagram or over streams; None if it has not.

        Over streams it answers on one of its own, so that an answer shows that both directions are open.
        """
        number = _FIRST + secrets.randbelow(_FIRST)
        event = self._waiting[number] = trio.Event()
        ping = Ping(number, record.id)
        began = trio.current_time()
        try:
            if stream:
                self._runner.perform((SendStream(record.address, ping),))
            else:
                packet = Packet(self._cluster, self._me.id, self._me.address, ping)
                self._runner.perform((SendDatagram(record.address, packet),))
            with trio.move_on_after(timeout_s):
                await event.wait()
                return trio.current_time() - began
        finally:
            del self._waiting[number]
        return None

    def _heard(self, number: int) -> None:
        event = self._waiting.get(number)
        if event is not None:
            event.set()
