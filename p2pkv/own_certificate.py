"""The shell around a node's certificate: reads it at start, and again when its files change."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from p2pkv.certificate_files import read_credentials, stamp
from p2pkv.errors import ConfigError
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.transport.credentials import Credentials

LOOK_S: Final = 1.0
"""How often the files are looked at: the time until a rotation is in force."""
_WARN_S: Final = 7 * 86_400
_WARN_AGAIN_S: Final = 6 * 3600.0

Changed = Callable[[Credentials, Credentials], None]
"""(before, after)."""


class OwnCertificate:
    """The certificate in force."""

    def __init__(self, folder: Path, *, cluster: str) -> None:
        """Read it.

        Raises:
            ConfigError: it is not there, not safe, not good now, or another cluster's.
        """
        self.folder: Final = folder
        self._cluster: Final = cluster
        self._stamp = stamp(folder)
        self._held = _good(read_credentials(folder), cluster=cluster, folder=folder)

    @property
    def node(self) -> str:
        """The id of this node: it is who its certificate says."""
        return self._held.own.node

    def now(self) -> Credentials:
        """Return what is in force."""
        return self._held

    def left_s(self) -> float:
        """Return how long it is good from now on, seconds; negative if it has expired."""
        return self._held.own.not_after - time.time()

    def text(self) -> str:
        """Return what status says."""
        own = self._held.own
        return f"certificate {own.fingerprint} until {time.strftime('%Y-%m-%d', time.gmtime(own.not_after))}"

    async def watch(self, *, changed: Changed, each_time: Callable[[], None], log: Log, metrics: Metrics) -> None:
        """Look at the files now and then until cancelled, and call `each_time`; warn of what is going to expire."""
        complaint, warn_at = "", trio.current_time()
        while True:
            left_s = self.left_s()
            metrics.certificate_left_seconds.set(left_s)
            if left_s < _WARN_S and trio.current_time() >= warn_at:
                warn_at = trio.current_time() + _WARN_AGAIN_S
                log.warning(
                    "this node's certificate expires soon" if left_s > 0 else "this node's certificate has expired",
                    certificate=self._held.own.fingerprint,
                    hours_left=round(left_s / 3600, 1),
                    hint=f"p2pkv cert rotate {self.folder}",
                )
            await trio.sleep(LOOK_S)
            each_time()
            found = stamp(self.folder)
            if found == self._stamp:
                continue
            try:
                after = _good(read_credentials(self.folder), cluster=self._cluster, folder=self.folder)
                if after.own.node != self.node:
                    raise ConfigError(f"the certificate is of another node ({after.own.node}): {self.folder}")
            except ConfigError as exc:  # files that are just being replaced: looked at again until they fit
                if str(exc) != complaint:
                    complaint = str(exc)
                    log.warning("certificate not taken, the one before stays", reason=complaint, hint=exc.hint)
                continue
            before, self._held = self._held, after
            self._stamp, complaint, warn_at = found, "", trio.current_time()
            log.info("certificate changed", before=before.own.fingerprint, now=after.own.fingerprint)
            changed(before, after)


def _good(found: Credentials, *, cluster: str, folder: Path) -> Credentials:
    own, now = found.own, time.time()
    if own.cluster != cluster:
        raise ConfigError(
            f"the certificate is of cluster {own.cluster!r}, this node of {cluster!r}: {folder}",
            hint="set node.cluster, or take a certificate of this cluster's authority",
        )
    if now >= own.not_after:
        raise ConfigError(f"the certificate has expired: {folder}", hint=f"p2pkv cert rotate {folder}")
    if now < own.not_before:
        raise ConfigError(f"the certificate is not valid yet: {folder}", hint="look at this machine's clock")
    return found
