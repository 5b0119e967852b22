"""Every exception p2pkv raises on purpose, in one file, so that a caller can read the whole tree at once.

The split follows what the catcher can do about it, not which module noticed it. A miss is not here: it is a value.
Cancellation is trio's, and a broken invariant of ours is an `AssertionError`.

    P2pkvError
    ├── LocalUseError        fix the call or the configuration; retrying will not help
    │   ├── ConfigError
    │   ├── CannotListen
    │   ├── LayoutMismatch
    │   └── NotABlockFile
    ├── PeerError (peer=)    another node misbehaved or vanished; treat it as a miss and go on
    │   ├── PeerGone (PeerRefused) · PeerTooSlow
    │   ├── MalformedMessage · VersionMismatch · SealRefused
    │   └── CorruptBlock
    ├── CapacityError (tier=)  back off; nothing was stored
    │   └── TierFull · PinLimit
    ├── FabricError (device=)  this node's own network card, device or disk failed
    ├── ObjectStoreFailed (store=)  an object store did not answer, or said that it cannot; treat it as a miss
    ├── DeliveryFailed       layers of blocks will not come: compute them, and do not use those that came
    └── DaemonUnreachable (socket=)  this node's daemon does not answer: an engine goes on without the mesh

An engine connector catches `P2pkvError` once, counts it by class and answers "miss".
"""

from typing import Final, Literal, TypeAlias

ObjectStoreFailure: TypeAlias = Literal["late", "busy", "refused", "no_bucket", "failed"]


class P2pkvError(Exception):
    """Base of everything p2pkv raises on purpose.

    `hint` is one sentence that tells a person what to do next, or empty. The command line prints it on its own line.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LocalUseError(P2pkvError):
    """This process asked for something p2pkv does not allow. Fix the call; retrying will not help."""


class ConfigError(LocalUseError):
    """A setting is unknown, malformed or contradicts another one. Nothing was started."""


class CannotListen(LocalUseError):
    """An address, a port or a socket path is taken or not to be had. Nothing was started, nothing was removed."""


class LayoutMismatch(LocalUseError):
    """The engine's KV cache does not have the shape the blocks have. Nothing was copied."""


class NotABlockFile(LocalUseError):
    """The bytes given are not a block file, or one that was cut short or altered. Nothing was stored."""


class PeerError(P2pkvError):
    """A peer misbehaved or vanished. Treat it as a cache miss and go on."""

    def __init__(self, message: str, *, peer: str, hint: str = "") -> None:
        super().__init__(f"{message}: {peer}", hint=hint)
        self.peer = peer


class PeerGone(PeerError):
    """The connection to a peer failed or was refused. What had arrived and was verified stays."""


class PeerRefused(PeerGone):
    """A peer's machine answers that nobody listens there: its process is gone, which silence alone would not prove."""


class PeerTooSlow(PeerError):
    """A peer did not answer within the time it was given. What had arrived and was verified stays."""


class MalformedMessage(PeerError):
    """A peer sent bytes that are not a message of the protocol. Its connection is closed."""


class VersionMismatch(PeerError):
    """A peer speaks no protocol version we speak, or belongs to another cluster. Its connection is closed."""


class SealRefused(PeerError):
    """A peer has not proved that it belongs here, or does not believe that this node does. What it sent was dropped.

    It is not sealed with a key of this node's ring or of a session, is a recording, was altered, or a certificate is not
    what it should be.
    `reason` is one of `SEAL_REASONS`, for counting.
    """

    def __init__(self, reason: str, *, peer: str, detail: str = "") -> None:
        text, hint = SEAL_REASONS[reason]
        super().__init__(f"{text} ({detail})" if detail else text, peer=peer, hint=hint)
        self.reason = reason


SEAL_REASONS: Final = {
    "plaintext": (
        "not encrypted, and this node has a keyring",
        "if the other node belongs here, give it this mesh's keyring (security.keyring)",
    ),
    "sealed": (
        "encrypted, and this node has no keyring",
        "give this node the mesh's keyring (security.keyring)",
    ),
    "unknown_key": (
        "encrypted with a key that is not in this node's keyring",
        "compare `p2pkv keys list` on both nodes, and install the missing key",
    ),
    "forged": ("altered on its way, or made without the key", ""),
    "replay": ("seen before, or too old to tell", ""),
    "old_boot": ("from an earlier run of its sender", ""),
    "duplicate": ("from a second process with its sender's id and boot", "two nodes share one identity: see the log"),
    "sender": ("not from the node that sealed it", ""),
    "malformed": ("too short or too long to be sealed", ""),
    "unknown_session": ("under a session key that this node did not grant, or has ended", ""),
    "expired_session": ("under a session key whose time is over", ""),
    "no_tls": (
        "not TLS, and this node has a certificate",
        "if the other node belongs here, give it a certificate (security.certificates)",
    ),
    "tls": (
        "TLS, and this node has no certificate",
        "give this node a certificate of the mesh (security.certificates)",
    ),
    "downgrade": ("no TLS 1.3", "a node of this mesh speaks nothing older: see who calls"),
    "foreign_certificate": (
        "its certificate is not of an authority that this node knows",
        "compare the authorities that `p2pkv cert show` names on both nodes",
    ),
    "expired_certificate": (
        "its certificate has expired",
        "`p2pkv cert rotate` its folder, and look at both clocks",
    ),
    "early_certificate": ("its certificate is not valid yet", "look at both clocks"),
    "certificate": ("its certificate is not fit for this", "make it with `p2pkv cert issue`"),
    "identity": (
        "its certificate is another node's or cluster's",
        "`p2pkv cert show` on that node says whose it is",
    ),
    "clock": ("its clock differs too much", "set the clocks by NTP; the limit is security.clock_skew_max_s"),
    "own_certificate": (
        "it does not accept this node's certificate",
        "`p2pkv cert show` says what it is; the log of the other node says what is wrong with it",
    ),
}
"""Reason -> (what is wrong, what a person can do about it)."""


class CorruptBlock(PeerError):
    """A block's bytes do not have the digest they were announced with. The copy was dropped."""


class CapacityError(P2pkvError):
    """A tier has no room. Back off; nothing was stored and nothing was lost."""

    def __init__(self, message: str, *, tier: str, hint: str = "") -> None:
        super().__init__(f"{message}: {tier} tier", hint=hint)
        self.tier = tier


class TierFull(CapacityError):
    """Everything in the tier is pinned, or the block is larger than the tier can ever hold."""


class PinLimit(CapacityError):
    """One holder asked for more pins or leases than it may have."""


class FabricError(P2pkvError):
    """This node's own device failed. The transport or tier on it is taken out of service."""

    def __init__(self, message: str, *, device: str, hint: str = "") -> None:
        super().__init__(f"{message}: {device}", hint=hint)
        self.device = device


class ObjectStoreFailed(P2pkvError):
    """An object store did not do what was asked, or not in time. What it did of it is not known; treat it as a miss.

    `reason` is one of `OBJECT_STORE_FAILURES`, for counting.
    """

    def __init__(self, reason: ObjectStoreFailure, *, store: str, detail: str = "") -> None:
        text, hint = OBJECT_STORE_FAILURES[reason]
        super().__init__(f"{text}{f' ({detail})' if detail else ''}: {store}", hint=hint)
        self.store = store
        self.reason: ObjectStoreFailure = reason


OBJECT_STORE_FAILURES: Final[dict[ObjectStoreFailure, tuple[str, str]]] = {
    "late": ("no answer within the time that was given", ""),
    "busy": ("as many requests are on their way as may be, and none ended within the time that was given", ""),
    "refused": (
        "the store does not let these credentials do this",
        "a node must be allowed to get, put, list and delete in its folder; without leave to list, S3 refuses where it has nothing",
    ),
    "no_bucket": ("the store has no such bucket", "make the bucket first, or name another"),
    "failed": ("the store cannot be reached, or says that it cannot", ""),
}
"""Reason -> (what is wrong, what a person can do about it)."""


class DeliveryFailed(P2pkvError):
    """A layer that was on its way will not come. An engine computes all blocks of the delivery, whatever came of them."""


class DaemonUnreachable(P2pkvError):
    """The daemon behind a local socket does not answer. An engine goes on without the mesh; a person starts it."""

    def __init__(self, message: str, *, socket: str, hint: str = "") -> None:
        super().__init__(f"{message}: {socket}", hint=hint)
        self.socket = socket
