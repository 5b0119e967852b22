"""Paged caches as engines lay them out, in whatever memory, for tests of gathering and scattering."""

import numpy as np
import torch

from p2pkv.blocks import CanonicalLayout, LatentLayout

PAGES, PAGE_TOKENS = 23, 16
GQA = CanonicalLayout(layers=3, kv_heads=2, block_tokens=32, head_dim=24, dtype="bf16")
ONE_PAGE = CanonicalLayout(layers=2, kv_heads=4, block_tokens=16, head_dim=128, dtype="fp16")
ODD = CanonicalLayout(layers=2, kv_heads=3, block_tokens=48, head_dim=5, dtype="int8")
MLA = LatentLayout(layers=4, block_tokens=32, latent_dim=72, dtype="fp32")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8, "fp32": torch.float32}
CACHES = {
    "planes first": (GQA, "kpthr"),
    "pages first": (GQA, "pkthr"),
    "heads first": (GQA, "pkhtr"),
    "a page is a block": (ONE_PAGE, "kpthr"),
    "rows of five bytes": (ODD, "pkhtr"),
    "latent": (MLA, "kpthr"),
}
"""Name -> layout, and the order of a layer's axes: planes, pages, tokens, heads, row."""


def planes_of(name: str, device: str = "cpu") -> list[torch.Tensor]:
    """Return the planes of a cache with random bytes, each layer its own allocation."""
    layout, order = CACHES[name]
    latent = isinstance(layout, LatentLayout)
    sizes = {
        "k": 1 if latent else 2,
        "p": PAGES,
        "t": PAGE_TOKENS,
        "h": 1 if latent else layout.kv_heads,
        "r": layout.latent_dim if latent else layout.head_dim,
    }
    torch.manual_seed(0)
    planes = []
    for _ in range(layout.layers):
        shape = [sizes[axis] for axis in order]
        item = DTYPES[layout.dtype].itemsize
        whole = torch.randint(0, 256, [*shape[:-1], shape[-1] * item], dtype=torch.uint8).view(DTYPES[layout.dtype])
        planes += list(whole.to(device).permute([order.index(axis) for axis in "kpthr"]))
    return planes


def table_of(name: str, blocks: int, seed: int = 0) -> np.ndarray:
    """Return a table of `blocks` blocks, whose pages are anywhere and none of them twice."""
    per_block = CACHES[name][0].block_tokens // PAGE_TOKENS
    pages = np.random.default_rng(seed).permutation(PAGES)[: blocks * per_block]
    return pages.reshape(blocks, per_block).astype(np.int64)


def expected(name: str, planes: list[torch.Tensor], table: np.ndarray) -> list[bytes]:
    """Return the blocks by the shapes of layouts alone: index the tokens, put the axes in order."""
    layout = CACHES[name][0]
    parts = 1 if isinstance(layout, LatentLayout) else 2
    blocks = []
    for pages in torch.from_numpy(table):
        tokens = [plane.cpu()[pages].flatten(0, 1) for plane in planes]  # [block_tokens, heads, row]
        layers = [torch.stack(tokens[i : i + parts]) for i in range(0, len(tokens), parts)]
        whole = torch.stack(layers).permute(0, 3, 1, 2, 4).contiguous()  # [layers, heads, parts, tokens, row]
        blocks.append(whole.view(torch.uint8).numpy().tobytes())
    return blocks
