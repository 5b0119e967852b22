"""Keys of chains: equal exactly when everything before and around them is equal."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import KEY_BYTES, CanonicalLayout, Extras, LatentLayout, Namespace, OpaqueLayout, Tenant
from p2pkv.errors import LocalUseError
from p2pkv.index.hashing import ROOT, chain_keys, wrap_engine_hash

CANONICAL = CanonicalLayout(layers=2, kv_heads=2, block_tokens=4, head_dim=8, dtype="bf16")
OPAQUE = OpaqueLayout(
    engine="e", version="1", isa="avx512", dtype="bf16", block_tokens=4, rank=0, tp=2, block_bytes=64, segment_bytes=32
)
SPACE = Namespace(weights_id="m", layout=CANONICAL)
TOKENS = list(range(1, 21))

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(left=tokens, right=tokens, block_tokens=st.integers(1, 9))
def test_keys_are_equal_exactly_as_far_as_the_prefixes_are(
    left: list[int], right: list[int], block_tokens: int
) -> None:
    space = Namespace(weights_id="m", layout=replace(CANONICAL, block_tokens=block_tokens))
    left_keys, right_keys = chain_keys(space, left), chain_keys(space, right)
    assert len(left_keys) == len(left) // block_tokens
    for i, (a, b) in enumerate(zip(left_keys, right_keys, strict=False)):
        end = (i + 1) * block_tokens
        assert (a == b) == (left[:end] == right[:end])


@given(tokens, st.integers(1, 9))
def test_a_shared_beginning_gives_shared_keys(shared: list[int], block_tokens: int) -> None:
    space = Namespace(weights_id="m", layout=replace(CANONICAL, block_tokens=block_tokens))
    keys = chain_keys(space, shared)
    assert chain_keys(space, [*shared, 7, 7, 7])[: len(keys)] == keys
    assert len(set(keys)) == len(keys)
    assert all(len(key) == KEY_BYTES for key in keys)


@given(tokens, st.integers(0, 10))
def test_a_chain_can_be_continued_from_any_of_its_keys(chain: list[int], blocks: int) -> None:
    keys = chain_keys(SPACE, chain)
    blocks = min(blocks, len(keys))
    parent = keys[blocks - 1] if blocks else ROOT
    assert keys[:blocks] + chain_keys(SPACE, chain[4 * blocks :], parent=parent) == keys


def test_block_sizes_do_not_share_keys() -> None:
    keys = [chain_keys(replace(SPACE, layout=replace(CANONICAL, block_tokens=n)), TOKENS) for n in range(1, 21)]
    assert len({key for some in keys for key in some}) == sum(len(some) for some in keys)
    assert [len(some) for some in keys] == [20 // n for n in range(1, 21)]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(SPACE, weights_id="n"), id="weights"),
        pytest.param(replace(SPACE, weights_epoch="1"), id="weights epoch"),
        pytest.param(replace(SPACE, kv_scales="s"), id="scales"),
        pytest.param(replace(SPACE, quantisation="q"), id="quantisation"),
        pytest.param(replace(SPACE, rope_scaling="r"), id="rope scaling"),
        pytest.param(replace(SPACE, tenant=Tenant(name="t")), id="tenant's name"),
        pytest.param(replace(SPACE, tenant=Tenant(secret=b"t")), id="tenant's secret"),
        pytest.param(replace(SPACE, layout=replace(CANONICAL, layers=3)), id="layers"),
        pytest.param(replace(SPACE, layout=replace(CANONICAL, kv_heads=3)), id="heads"),
        pytest.param(replace(SPACE, layout=replace(CANONICAL, head_dim=9)), id="head size"),
        pytest.param(replace(SPACE, layout=replace(CANONICAL, dtype="fp16")), id="dtype"),
        pytest.param(
            replace(SPACE, layout=LatentLayout(layers=2, block_tokens=4, latent_dim=32, dtype="bf16")), id="latent"
        ),
        pytest.param(replace(SPACE, layout=OPAQUE), id="opaque"),
    ],
)
def test_every_field_of_the_namespace_changes_every_key(other: Namespace) -> None:
    assert not set(chain_keys(SPACE, TOKENS)) & set(chain_keys(other, TOKENS))


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "f"},
        {"version": "2"},
        {"isa": "amx"},
        {"dtype": "fp16"},
        {"rank": 1},
        {"tp": 4},
        {"block_bytes": 128},
        {"segment_bytes": 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_decides_an_engines_packing_changes_every_key(change: dict[str, object]) -> None:
    space = replace(SPACE, layout=OPAQUE)
    other = replace(SPACE, layout=replace(OPAQUE, **change))  # type: ignore[arg-type]  # as many types as fields
    assert not set(chain_keys(space, TOKENS)) & set(chain_keys(other, TOKENS))


def test_extras_of_the_request_change_every_key_and_are_told_apart() -> None:
    extras = [
        Extras(),
        Extras(lora="x"),
        Extras(cache_salt="x"),
        Extras(lora="x", cache_salt="x"),
        Extras(multimodal=(("x", 0),)),
        Extras(multimodal=(("x", 1),)),
        Extras(multimodal=(("x", 0), ("x", 0))),
        Extras(prompt_embeds=b"x"),
    ]
    keys = [chain_keys(SPACE, TOKENS, extra) for extra in extras]
    assert len({key for some in keys for key in some}) == sum(len(some) for some in keys)


def test_extras_of_one_block_change_it_and_all_after_it() -> None:
    plain = chain_keys(SPACE, TOKENS)
    marked = chain_keys(SPACE, TOKENS, [Extras(), Extras(), Extras(prompt_embeds=b"e"), Extras(), Extras()])
    assert marked[:2] == plain[:2]
    assert not set(marked[2:]) & set(plain[2:])


def test_too_few_extras_are_refused() -> None:
    with pytest.raises(LocalUseError, match="1 extras for 5 full blocks"):
        chain_keys(SPACE, TOKENS, [Extras()])


@pytest.mark.parametrize("token", [-1, 2**32, 1.5, "a"])
def test_tokens_out_of_range_are_refused(token: int) -> None:
    with pytest.raises(LocalUseError, match="token ids must be integers"):
        chain_keys(SPACE, [1, 2, 3, token])


def test_a_tail_shorter_than_a_block_is_not_looked_at() -> None:
    assert chain_keys(SPACE, [1, 2, 3]) == []
    assert chain_keys(SPACE, [1, 2, 3, 4, 5]) == chain_keys(SPACE, [1, 2, 3, 4])


def test_wrapped_hashes_depend_on_namespace_scheme_and_hash() -> None:
    other = replace(SPACE, weights_epoch="1")
    keys = {
        wrap_engine_hash(SPACE, b"h", "s"),
        wrap_engine_hash(SPACE, b"i", "s"),
        wrap_engine_hash(SPACE, b"h", "t"),
        wrap_engine_hash(other, b"h", "s"),
    }
    assert len(keys) == 4
    assert wrap_engine_hash(SPACE, b"h", "s") in keys
