import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import CanonicalLayout
from p2pkv.connectors.layout import TORCH_DTYPES, block_filler, elements_of, scatter_blocks
from p2pkv.errors import LayoutMismatch

layouts = st.builds(
    CanonicalLayout,
    layers=st.integers(1, 4),
    kv_heads=st.integers(1, 5),
    block_tokens=st.integers(1, 9),
    head_dim=st.integers(1, 9),
    dtype=st.sampled_from(sorted(TORCH_DTYPES)),
)
LAYOUT = CanonicalLayout(layers=2, kv_heads=3, block_tokens=4, head_dim=5, dtype="bf16")


def random_kv(layout, tokens, *, seed=0, strided=False):
    """K and V of each layer, any bits at all (so NaNs too); strided: as attention makes them, tokens before heads."""
    dtype, random = TORCH_DTYPES[layout.dtype], np.random.default_rng(seed)

    def one():
        shape = (tokens, layout.kv_heads) if strided else (layout.kv_heads, tokens)
        raw = np.frombuffer(random.bytes(layout.kv_heads * tokens * layout.head_dim * dtype.itemsize), dtype=np.uint8)
        tensor = torch.from_numpy(raw.copy()).view(dtype).reshape(*shape, layout.head_dim)
        return tensor.transpose(0, 1) if strided else tensor

    return [(one(), one()) for _ in range(layout.layers)]


def blocks_of(kv, layout, count):
    fill = block_filler([(elements_of(keys), elements_of(values)) for keys, values in kv], layout)
    bodies = [np.empty(layout.block_bytes, dtype=np.uint8) for _ in range(count)]
    for i, body in enumerate(bodies):
        fill(i, body)
    return [body.tobytes() for body in bodies]  # bytes are read-only, as the daemon's memory is


@given(layout=layouts, count=st.integers(1, 5), tail=st.integers(0, 3), seed=st.integers(0, 99), strided=st.booleans())
def test_tensors_to_blocks_to_tensors_keeps_every_bit(layout, count, tail, seed, strided):
    tokens = count * layout.block_tokens
    kv = random_kv(layout, tokens + tail, seed=seed, strided=strided)
    back = scatter_blocks(blocks_of(kv, layout, count), layout)
    assert len(back) == layout.layers
    for (keys, values), (keys_back, values_back) in zip(kv, back, strict=True):
        for there, here in ((keys, keys_back), (values, values_back)):
            assert here.dtype == there.dtype
            assert here.shape == (1, layout.kv_heads, tokens, layout.head_dim)
            assert here.is_contiguous()
            assert np.array_equal(elements_of(here[0]), elements_of(there[:, :tokens]))


@given(layout=layouts, count=st.integers(1, 3), seed=st.integers(0, 99))
def test_each_element_lies_where_the_canonical_layout_says(layout, count, seed):
    kv = random_kv(layout, count * layout.block_tokens, seed=seed)
    for i, body in enumerate(blocks_of(kv, layout, count)):
        first = i * layout.block_tokens
        for layer, pair in enumerate(kv):
            for which, tensor in enumerate(pair):
                integers = elements_of(tensor)
                block = np.frombuffer(body, dtype=integers.dtype).reshape(layout.shape)
                for head in range(layout.kv_heads):
                    for token in range(layout.block_tokens):
                        assert np.array_equal(block[layer, head, which, token], integers[head, first + token])


def test_the_result_shares_no_memory_with_the_blocks():
    body = bytearray(blocks_of(random_kv(LAYOUT, 4), LAYOUT, 1)[0])
    ((keys, _), _) = scatter_blocks([memoryview(body)], LAYOUT)
    before = keys.clone()
    body[:] = bytes(len(body))
    assert torch.equal(keys.view(torch.int16), before.view(torch.int16))


def test_reading_from_read_only_memory_warns_of_nothing():
    with np.testing.assert_no_warnings():
        scatter_blocks([memoryview(bytes(LAYOUT.block_bytes))], LAYOUT)


def test_no_blocks_make_empty_tensors():
    ((keys, values), _) = scatter_blocks([], LAYOUT)
    assert keys.shape == values.shape == (1, 3, 0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, "KV of 2 layers, the layout says 3"),
        ({"kv_heads": 2}, r"K of layer 0 has shape \(3, 8, 5\) and 2 bytes an element, must have \(2, 8, 5\)"),
        ({"head_dim": 6}, "must have"),
        ({"dtype": "fp32"}, "and 4$"),
        ({"dtype": "int8"}, "KV of dtype int8, must be one of"),
    ],
)
def test_tensors_of_another_shape_are_refused(change, message):
    fields = {"layers": 2, "kv_heads": 3, "block_tokens": 4, "head_dim": 5, "dtype": "bf16"} | change
    with pytest.raises(LayoutMismatch, match=message):
        blocks_of(random_kv(LAYOUT, 8), CanonicalLayout(**fields), 1)


def test_a_value_tensor_of_another_shape_is_refused():
    kv = random_kv(LAYOUT, 8)
    kv[1] = (kv[1][0], kv[1][1][:, :7])
    with pytest.raises(LayoutMismatch, match="V of layer 1"):
        blocks_of(kv, LAYOUT, 1)


def test_a_block_beyond_the_tokens_is_refused():
    with pytest.raises(LayoutMismatch, match="block 2 ends at token 12, the KV at token 8"):
        blocks_of(random_kv(LAYOUT, 8), LAYOUT, 3)


def test_bytes_of_another_size_are_refused():
    with pytest.raises(LayoutMismatch, match="block of 7 bytes, the layout says 480"):
        scatter_blocks([bytes(7)], LAYOUT)
    fill = block_filler([(elements_of(k), elements_of(v)) for k, v in random_kv(LAYOUT, 8)], LAYOUT)
    with pytest.raises(LayoutMismatch, match=r"destination of shape \(7,\)"):
        fill(0, np.empty(7, dtype=np.uint8))
