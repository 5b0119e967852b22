"""Prompts of a batch, padded on the left to one length: which tokens each really has, and how much of a cache all of them can share.

A cache has one length for all rows. Row `i` has `padding[i]` positions of padding, then its own tokens; what is known of its KV ends
at some position, and the cache ends where the first row's does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from p2pkv.errors import LocalUseError

TokenIds: TypeAlias = torch.Tensor | Sequence[int]
"""Token ids: one prompt, `[n]` or `[1, n]`, or a batch, `[rows, n]`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt of a batch."""

    padding: int
    """Positions in front of its first token."""
    tokens: list[int]


def rows_of(input_ids: TokenIds, attention_mask: torch.Tensor | None = None) -> list[Row]:
    """Return the prompts of a batch.

    Args:
        input_ids: `[n]`, `[1, n]` or `[rows, n]`.
        attention_mask: `[rows, m]`, 0 for padding; None: there is none.

    Raises:
        LocalUseError: another shape, a batch without a mask, or padding that is not all on the left.
    """
    if not isinstance(input_ids, torch.Tensor):
        input_ids = torch.tensor(list(input_ids), dtype=torch.long)
    if input_ids.dim() == 1:
        input_ids = input_ids.unsqueeze(0)
    if input_ids.dim() != 2:  # noqa: PLR2004 - rows and tokens
        raise LocalUseError(f"input_ids of shape {tuple(input_ids.shape)}, must be [n] or [rows, n]")
    if attention_mask is None:
        if input_ids.shape[0] != 1:
            raise LocalUseError(
                f"{input_ids.shape[0]} prompts without an attention mask",
                hint="give attention_mask, all ones if nothing is padded",
            )
        return [Row(0, input_ids[0].tolist())]
    if attention_mask.dim() != 2 or attention_mask.shape[0] != input_ids.shape[0]:  # noqa: PLR2004 - the same
        raise LocalUseError(
            f"attention_mask of shape {tuple(attention_mask.shape)} for input_ids of {tuple(input_ids.shape)}"
        )
    rows = []
    for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
        padding = next((at for at, seen in enumerate(mask) if seen), len(mask))
        if not all(mask[padding:]):
            raise LocalUseError("padding between or behind tokens", hint='set padding_side="left" at the tokenizer')
        rows.append(Row(padding, ids[padding:]))
    return rows


def common_length(rows: Sequence[Row], known_tokens: Sequence[int]) -> int:
    """Return how long a cache can be of which `known_tokens[i]` tokens of row `i` are known."""
    return min(row.padding + known for row, known in zip(rows, known_tokens, strict=True))
