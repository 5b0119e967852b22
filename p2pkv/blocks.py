"""The nouns everyone shares: layouts, namespaces, keys of blocks, and the digest of a block's bytes.

Two different things are called a digest in this field, and mixing them up is how caches return wrong tokens. A *key*
(and the namespace inside it) is a keyed BLAKE2b over what a block *means*: tokens, model, layout, tenant. A block's
*digest* is an XXH3-128 over what a block *is*: the bytes one producer made. Two producers of one key differ bitwise,
so a digest names a copy and never a key.

The encoding of namespaces and keys is frozen by golden vectors in `tests/p2pkv/golden_keys.json`: a change of a single
byte would silently empty every mesh that is half upgraded.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Final, Literal, NewType, TypeAlias, cast

import xxhash

from p2pkv.errors import LocalUseError

KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 16
_KEY: Final = struct.Struct(f"{KEY_BYTES}s")

BytesLike: TypeAlias = bytes | bytearray | memoryview

BlockKey = NewType("BlockKey", bytes)
"""32 bytes that name a block: see `p2pkv.index.hashing`."""

Dtype: TypeAlias = Literal["fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8"]
ITEM_BYTES: Final[dict[str, int]] = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1}

_NAMESPACE_PERSON: Final = b"p2pkv.space.1"
_TENANT_PERSON: Final = b"p2pkv.tenant.1"


def tagged(tag: str, value: bytes) -> bytes:
    """Return `value` behind its tag and length, so that no two lists of fields ever encode to the same bytes.

    Untagged, unprefixed key material is how other caches mixed up a LoRA name with a cache salt.
    """
    name = tag.encode()
    return struct.pack("<BI", len(name), len(value)) + name + value


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalLayout:
    """Keys and values of grouped-query attention, free of tensor and pipeline parallelism.

    A block is `[layers, kv_heads, 2, block_tokens, head_dim]`, C-contiguous, in `dtype`; index 0 of the third axis is
    K, 1 is V. A rank that holds a range of heads therefore holds one contiguous run per layer.
    """

    layers: int
    kv_heads: int
    block_tokens: int
    head_dim: int
    dtype: Dtype

    def __post_init__(self) -> None:
        _require_positive(self, "layers", "kv_heads", "block_tokens", "head_dim")

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """`[layers, kv_heads, 2, block_tokens, head_dim]`."""
        return (self.layers, self.kv_heads, 2, self.block_tokens, self.head_dim)

    @property
    def segment_bytes(self) -> int:
        """Bytes of one segment: one layer x one head, K and V together."""
        return 2 * self.block_tokens * self.head_dim * ITEM_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.layers * self.kv_heads * self.segment_bytes

    def identity(self) -> bytes:
        """Return what of this layout enters the namespace."""
        return tagged("canonical", struct.pack("<5I", *self.shape)) + tagged("dtype", self.dtype.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentLayout:
    """The compressed cache of multi-head latent attention: `[layers, block_tokens, latent_dim]`, C-contiguous."""

    layers: int
    block_tokens: int
    latent_dim: int
    dtype: Dtype

    def __post_init__(self) -> None:
        _require_positive(self, "layers", "block_tokens", "latent_dim")

    @property
    def shape(self) -> tuple[int, int, int]:
        """`[layers, block_tokens, latent_dim]`."""
        return (self.layers, self.block_tokens, self.latent_dim)

    @property
    def segment_bytes(self) -> int:
        """Bytes of one segment: one layer."""
        return self.block_tokens * self.latent_dim * ITEM_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.layers * self.segment_bytes

    def identity(self) -> bytes:
        """Return what of this layout enters the namespace."""
        return tagged("latent", struct.pack("<3I", *self.shape)) + tagged("dtype", self.dtype.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class OpaqueLayout:
    """Whole blocks in an engine's own packing, moved as they are and never sliced.

    vLLM's CPU kernels, for one, interleave K and V in a way that depends on the instruction set; so everything that
    decides the packing is part of the layout's identity.
    """

    engine: str
    version: str
    isa: str
    dtype: Dtype
    block_tokens: int
    rank: int
    tp: int
    block_bytes: int
    segment_bytes: int
    """The unit of digests, a divisor of `block_bytes`: the bytes of one layer is a good choice."""

    def __post_init__(self) -> None:
        _require_positive(self, "block_tokens", "tp", "block_bytes", "segment_bytes")
        if not 0 <= self.rank < self.tp:
            raise LocalUseError(f"rank is {self.rank}, must be between 0 and tp - 1 ({self.tp - 1})")
        if self.block_bytes % self.segment_bytes:
            raise LocalUseError(f"segment_bytes is {self.segment_bytes}, must divide block_bytes ({self.block_bytes})")

    def identity(self) -> bytes:
        """Return what of this layout enters the namespace."""
        sizes = struct.pack("<3IQQ", self.block_tokens, self.rank, self.tp, self.block_bytes, self.segment_bytes)
        texts = (("engine", self.engine), ("version", self.version), ("isa", self.isa), ("dtype", self.dtype))
        return tagged("opaque", sizes) + b"".join(tagged(name, text.encode()) for name, text in texts)


Layout: TypeAlias = CanonicalLayout | LatentLayout | OpaqueLayout


def _require_positive(layout: object, *names: str) -> None:
    for name in names:
        value = getattr(layout, name)
        if not 0 < value < 2**31:
            raise LocalUseError(f"{name} is {value}, must be between 1 and 2**31 - 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who may share blocks with whom. Two tenants never share a key unless they share the secret.

    It comes from authenticated configuration, never from a string in a request: whoever knows the secret can compute
    the keys, and a key is what opens a block.
    """

    name: str = ""
    secret: bytes = b""

    def hashing_key(self) -> bytes:
        """Return the 32-byte key under which this tenant's namespaces and blocks are hashed."""
        material = tagged("name", self.name.encode()) + tagged("secret", self.secret)
        return hashlib.blake2b(material, digest_size=KEY_BYTES, person=_TENANT_PERSON).digest()

    def __repr__(self) -> str:  # a secret that shows up in a traceback is no secret
        return f"Tenant(name={self.name!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """Everything that must match for KV to be reusable; two nodes that differ in any field never share a block."""

    weights_id: str
    """Which weights: a revision, or a digest of the manifest of files."""
    layout: Layout
    weights_epoch: str = "0"
    """Changes when the weights are swapped in place (reinforcement learning). Taken when a block is first computed."""
    kv_scales: str = ""
    """Digest of the scales a quantised KV cache was written with; empty without quantisation."""
    quantisation: str = ""
    rope_scaling: str = ""
    tenant: Tenant = Tenant()

    @property
    def digest(self) -> bytes:
        """32 bytes that name this namespace, keyed by the tenant's secret."""
        texts = ("weights_id", "weights_epoch", "kv_scales", "quantisation", "rope_scaling")
        material = b"".join(tagged(name, getattr(self, name).encode()) for name in texts)
        material += tagged("layout", self.layout.identity())
        return hashlib.blake2b(
            material, digest_size=KEY_BYTES, key=self.tenant.hashing_key(), person=_NAMESPACE_PERSON
        ).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What besides tokens decides the KV of a block. A feature that is missing here must not be cached.

    `lora` and `cache_salt` belong to the whole request and enter every block's key. `multimodal` and `prompt_embeds`
    belong to the block they stand in: give one `Extras` per block where they differ.
    """

    lora: str = ""
    cache_salt: str = ""
    multimodal: tuple[tuple[str, int], ...] = ()
    """(digest of the item, offset in tokens of its first placeholder from the start of the block; may be negative)."""
    prompt_embeds: bytes = b""
    """Digest of the embeddings that stand in place of tokens in this block, shape and dtype included."""

    def encoded(self) -> bytes:
        """Return the bytes that enter the key; empty when nothing is set, so that plain prompts stay cheap."""
        parts: list[bytes] = []
        if self.lora:
            parts.append(tagged("lora", self.lora.encode()))
        if self.cache_salt:
            parts.append(tagged("cache_salt", self.cache_salt.encode()))
        for item, offset in self.multimodal:
            parts.append(tagged("multimodal", struct.pack("<q", offset) + item.encode()))
        if self.prompt_embeds:
            parts.append(tagged("prompt_embeds", self.prompt_embeds))
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """One copy of a block: what it is called, how large it is, and the digest its bytes must have."""

    key: BlockKey
    namespace: bytes
    """32 bytes, `Namespace.digest`."""
    length: int
    """Bytes of the body."""
    segment_bytes: int
    digest: bytes
    """16 bytes, `block_digest` of the body."""


def segment_table(body: BytesLike, segment_bytes: int) -> bytes:
    """Return the XXH3-128 of each segment of `body` in order, 16 bytes each.

    Raises:
        LocalUseError: `body` is empty or not a whole number of segments.
    """
    view = memoryview(body).cast("B")
    if segment_bytes <= 0 or len(view) == 0 or len(view) % segment_bytes:
        raise LocalUseError(f"body of {len(view)} bytes is not a whole number of segments of {segment_bytes}")
    pieces = map(
        view.__getitem__, _cuts(len(view), segment_bytes)
    )  # no bytecode: 32 segments of 8 KiB take 23 µs, and took 27
    return b"".join(map(xxhash.xxh3_128_digest, pieces))


@lru_cache(maxsize=64)
def _cuts(length: int, segment_bytes: int) -> tuple[slice, ...]:
    return tuple(slice(start, start + segment_bytes) for start in range(0, length, segment_bytes))


def block_digest(body: BytesLike, segment_bytes: int) -> bytes:
    """Return the 16-byte digest of a block: XXH3-128 over the table of its segments' digests.

    XXH3 guards against corruption, not against a lying member (see docs/concepts/safety.md). About 25 GB/s.
    """
    return xxhash.xxh3_128_digest(segment_table(body, segment_bytes))


def join_keys(keys: Sequence[bytes]) -> bytes:
    """Return `keys` as one bytes field: 256 keys encode in 0.13 µs instead of 18 µs as a list."""
    return b"".join(keys)


def split_keys(joined: bytes) -> tuple[BlockKey, ...]:
    """Undo `join_keys`. A trailing fragment is the caller's to refuse before (`len % KEY_BYTES`); here it is left out.

    A loop in C, 0.03 µs a key: every question about a chain begins with it, and slices took five times as long.
    """
    whole = joined[: len(joined) // KEY_BYTES * KEY_BYTES]  # no copy if there is no fragment
    return cast("tuple[BlockKey, ...]", tuple(chain.from_iterable(_KEY.iter_unpack(whole))))
