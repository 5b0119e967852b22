"""Names of blocks are frozen: two versions of p2pkv that disagreed on a byte of a key would share nothing."""

import hashlib
import json
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import (
    DIGEST_BYTES,
    ITEM_BYTES,
    KEY_BYTES,
    BlockKey,
    CanonicalLayout,
    Extras,
    LatentLayout,
    Layout,
    Namespace,
    OpaqueLayout,
    Tenant,
    block_digest,
    join_keys,
    segment_table,
    split_keys,
    tagged,
)
from p2pkv.errors import LocalUseError
from p2pkv.index.hashing import chain_keys, wrap_engine_hash

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden_keys.json").read_text(encoding="utf-8"))
CHAINS = {chain["name"]: chain for chain in GOLDEN["chains"]}
LAYOUTS: dict[str, type[Layout]] = {"canonical": CanonicalLayout, "latent": LatentLayout, "opaque": OpaqueLayout}

CANONICAL = CanonicalLayout(layers=30, kv_heads=3, block_tokens=16, head_dim=64, dtype="bf16")
LATENT = LatentLayout(layers=27, block_tokens=16, latent_dim=576, dtype="fp16")
OPAQUE = OpaqueLayout(
    engine="vllm",
    version="0.11.0",
    isa="avx512",
    dtype="bf16",
    block_tokens=16,
    rank=0,
    tp=1,
    block_bytes=368_640,
    segment_bytes=12_288,
)


def built_namespace(chain: dict[str, Any]) -> Namespace:
    layout = dict(chain["layout"])
    space = dict(chain["namespace"])
    tenant = space.pop("tenant", {})
    return Namespace(
        layout=LAYOUTS[layout.pop("kind")](**layout),
        tenant=Tenant(name=tenant.get("name", ""), secret=bytes.fromhex(tenant.get("secret", ""))),
        **space,
    )


def built_extras(chain: dict[str, Any]) -> Extras | list[Extras]:
    extras = [
        Extras(
            lora=one.get("lora", ""),
            cache_salt=one.get("cache_salt", ""),
            multimodal=tuple((item, offset) for item, offset in one.get("multimodal", [])),
            prompt_embeds=bytes.fromhex(one.get("prompt_embeds", "")),
        )
        for one in chain["extras"]
    ]
    return extras[0] if len(extras) == 1 else extras or Extras()


# -- golden vectors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
def test_namespaces_and_keys_are_what_they_have_always_been(name: str) -> None:
    chain = CHAINS[name]
    namespace = built_namespace(chain)
    assert namespace.digest.hex() == chain["namespace_digest"]
    assert [key.hex() for key in chain_keys(namespace, chain["tokens"], built_extras(chain))] == chain["keys"]


def test_wrapped_hashes_are_what_they_have_always_been() -> None:
    namespace = built_namespace(CHAINS["plain"])
    for vector in GOLDEN["wrapped_hashes"]:
        key = wrap_engine_hash(namespace, bytes.fromhex(vector["engine_hash"]), vector["scheme"])
        assert key.hex() == vector["key"]


@pytest.mark.parametrize("vector", GOLDEN["block_digests"], ids=lambda vector: f"{vector['body'][:8]}")
def test_digests_of_blocks_are_what_they_have_always_been(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["body"]) * vector["times"]
    assert block_digest(body, vector["segment_bytes"]).hex() == vector["digest"]


def test_the_vectors_cover_every_field_and_no_two_share_a_name_or_a_key() -> None:
    texts = json.dumps(GOLDEN["chains"])
    names = [one.name for kind in (Namespace, Extras, Tenant, *LAYOUTS.values()) for one in fields(kind)]
    assert [name for name in names if name != "layout" and f'"{name}"' not in texts] == []
    assert {chain["layout"]["dtype"] for chain in GOLDEN["chains"]} == set(ITEM_BYTES)
    keys = [key for chain in GOLDEN["chains"] for key in chain["keys"]]
    later_only = {"prompt embeddings": "plain", "multimodal items, one begun in an earlier block": "multimodal item"}
    for name, other in later_only.items():  # what belongs to the second block leaves the first as it was
        assert CHAINS[name]["keys"][0] == CHAINS[other]["keys"][0]
    assert len(set(keys)) == len(keys) - len(later_only)


def field(tag: bytes, value: bytes) -> bytes:
    return bytes([len(tag)]) + len(value).to_bytes(4, "little") + tag + value


def blake(material: bytes, person: bytes, key: bytes = b"") -> bytes:
    return hashlib.blake2b(material, digest_size=32, key=key, person=person).digest()


def test_the_plain_vector_follows_from_the_documented_format_alone() -> None:
    """Written out byte by byte, with nothing of p2pkv's own: another implementation could be made from this."""
    tenant = blake(field(b"name", b"") + field(b"secret", b""), b"p2pkv.tenant.1")
    layout = field(b"canonical", struct.pack("<5I", 30, 3, 2, 4, 64)) + field(b"dtype", b"bf16")
    texts = {b"weights_id": b"model@main", b"weights_epoch": b"0", b"kv_scales": b"", b"quantisation": b""}
    texts[b"rope_scaling"] = b""
    space = blake(
        b"".join(field(tag, value) for tag, value in texts.items()) + field(b"layout", layout),
        b"p2pkv.space.1",
        tenant,
    )
    first = blake(space + bytes(32) + struct.pack("<5I", 4, 1, 2, 3, 4), b"p2pkv.block.1", tenant)
    second = blake(space + first + struct.pack("<5I", 4, 5, 6, 7, 8), b"p2pkv.block.1", tenant)
    plain = CHAINS["plain"]
    assert space.hex() == plain["namespace_digest"]
    assert [first.hex(), second.hex()] == plain["keys"]


def test_the_fullest_vector_follows_from_the_documented_format_alone() -> None:
    tenant = blake(field(b"name", b"acme") + field(b"secret", b"\x00\xff\x10"), b"p2pkv.tenant.1")
    layout = field(b"opaque", struct.pack("<IIIQQ", 4, 1, 2, 92_160, 3072)) + field(b"engine", b"vllm")
    layout += field(b"version", b"0.11.0") + field(b"isa", b"avx512") + field(b"dtype", b"bf16")
    texts = field(b"weights_id", b"model@main") + field(b"weights_epoch", b"7") + field(b"kv_scales", b"0f3a")
    texts += field(b"quantisation", b"awq-int4") + field(b"rope_scaling", b"yarn:4.0")
    space = blake(texts + field(b"layout", layout), b"p2pkv.space.1", tenant)
    request = field(b"lora", b"adapter@1") + field(b"cache_salt", b"pepper")
    own = field(b"multimodal", struct.pack("<q", 0) + b"img-1") + field(b"prompt_embeds", b"\xa1\xb2\xc3")
    first = blake(space + bytes(32) + struct.pack("<5I", 4, 1, 2, 3, 4) + request + own, b"p2pkv.block.1", tenant)
    second = blake(space + first + struct.pack("<5I", 4, 5, 6, 7, 8) + request, b"p2pkv.block.1", tenant)
    fullest = CHAINS["everything at once"]
    assert space.hex() == fullest["namespace_digest"]
    assert [first.hex(), second.hex()] == fullest["keys"]


def test_a_digest_follows_from_the_documented_format_alone() -> None:
    body = bytes(range(12))
    table = b"".join(xxhash.xxh3_128_digest(body[start : start + 4]) for start in (0, 4, 8))
    assert segment_table(body, 4) == table
    assert block_digest(body, 4) == xxhash.xxh3_128_digest(table)
    assert len(block_digest(body, 4)) == DIGEST_BYTES


# -- layouts ---------------------------------------------------------------------------------------------------------


def test_a_canonical_block_has_room_for_keys_and_values_of_every_head() -> None:
    assert CANONICAL.shape == (30, 3, 2, 16, 64)
    assert CANONICAL.segment_bytes == 2 * 16 * 64 * 2
    assert CANONICAL.block_bytes == 30 * 3 * CANONICAL.segment_bytes == 368_640


def test_a_latent_block_has_one_segment_per_layer() -> None:
    assert LATENT.shape == (27, 16, 576)
    assert LATENT.segment_bytes == 16 * 576 * 2
    assert LATENT.block_bytes == 27 * LATENT.segment_bytes


@pytest.mark.parametrize(("dtype", "width"), [("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp8_e4m3", 1), ("int8", 1)])
def test_bytes_follow_the_dtype(dtype: Any, width: int) -> None:
    assert replace(CANONICAL, dtype=dtype).block_bytes == 184_320 * width
    assert replace(LATENT, dtype=dtype).segment_bytes == 16 * 576 * width


@given(
    layers=st.integers(1, 200),
    kv_heads=st.integers(1, 200),
    block_tokens=st.integers(1, 300),
    head_dim=st.integers(1, 600),
    dtype=st.sampled_from(sorted(ITEM_BYTES)),
)
def test_a_block_is_always_whole_segments(
    layers: int, kv_heads: int, block_tokens: int, head_dim: int, dtype: Any
) -> None:
    layout = CanonicalLayout(
        layers=layers, kv_heads=kv_heads, block_tokens=block_tokens, head_dim=head_dim, dtype=dtype
    )
    assert layout.block_bytes == layers * kv_heads * layout.segment_bytes
    assert layout.block_bytes == layers * kv_heads * 2 * block_tokens * head_dim * ITEM_BYTES[dtype]


@pytest.mark.parametrize("value", [0, -1, 2**31])
@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *((CANONICAL, name) for name in ("layers", "kv_heads", "block_tokens", "head_dim")),
        *((LATENT, name) for name in ("layers", "block_tokens", "latent_dim")),
        *((OPAQUE, name) for name in ("block_tokens", "block_bytes", "segment_bytes")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_sizes_that_make_no_sense_are_refused_by_name(layout: Layout, name: str, value: int) -> None:
    with pytest.raises(LocalUseError, match=f"{name} is {value}, must be between 1 and"):
        replace(layout, **{name: value})  # type: ignore[arg-type]


def test_an_opaque_layout_must_be_consistent() -> None:
    with pytest.raises(LocalUseError, match=r"rank is 2, must be between 0 and tp - 1 \(1\)"):
        replace(OPAQUE, rank=2, tp=2)
    with pytest.raises(LocalUseError, match="rank is -1"):
        replace(OPAQUE, rank=-1)
    with pytest.raises(LocalUseError, match=r"segment_bytes is 1000, must divide block_bytes \(368640\)"):
        replace(OPAQUE, segment_bytes=1000)


# -- names -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text("ab", max_size=3), st.binary(max_size=4)), max_size=4), st.data())
def test_no_two_lists_of_tagged_fields_encode_alike(fields_: list[tuple[str, bytes]], data: st.DataObject) -> None:
    """Caches that joined strings mixed up a LoRA's name with a cache salt."""
    other = data.draw(st.lists(st.tuples(st.text("ab", max_size=3), st.binary(max_size=4)), max_size=4))
    encoded, encoded_other = (b"".join(tagged(*one) for one in some) for some in (fields_, other))
    assert (encoded == encoded_other) == (fields_ == other)


def test_a_tenants_secret_is_not_shown() -> None:
    tenant = Tenant(name="acme", secret=b"hunter2")
    namespace = Namespace(weights_id="m", layout=CANONICAL, tenant=tenant)
    assert "hunter2" not in repr(tenant) + repr(namespace)
    assert "acme" in repr(tenant)


def test_plain_prompts_add_nothing_to_a_key() -> None:
    assert Extras().encoded() == b""


@given(st.lists(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), max_size=9))
def test_joined_keys_come_apart_as_they_were(keys: list[bytes]) -> None:
    assert list(split_keys(join_keys(keys))) == [BlockKey(key) for key in keys]


# -- digests ---------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=64), st.data())
def test_any_altered_byte_changes_the_digest(body: bytes, data: st.DataObject) -> None:
    at, mask = data.draw(st.integers(0, len(body) - 1)), data.draw(st.integers(1, 255))
    altered = bytearray(body)
    altered[at] ^= mask
    assert block_digest(body, 1) != block_digest(altered, 1)
    assert block_digest(body, len(body)) != block_digest(bytes(altered), len(body))


def test_the_size_of_segments_is_part_of_a_digest() -> None:
    body = bytes(12)
    assert len({block_digest(body, size) for size in (1, 2, 3, 4, 6, 12)}) == 6


def test_a_digest_looks_at_bytes_and_not_at_their_container() -> None:
    body = bytes(range(16))
    wide = memoryview(body).cast("I")
    assert {block_digest(one, 8) for one in (body, bytearray(body), memoryview(body), wide)} == {block_digest(body, 8)}


@pytest.mark.parametrize(("length", "segment_bytes"), [(0, 1), (10, 3), (10, 0), (10, -5), (10, 20)])
def test_a_body_that_is_not_whole_segments_has_no_digest(length: int, segment_bytes: int) -> None:
    with pytest.raises(LocalUseError, match=f"body of {length} bytes is not a whole number of segments"):
        block_digest(bytes(length), segment_bytes)
