"""The keys of one request's blocks, in every space, extended as its tokens become known. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pkv.blocks import BlockKey, Extras, Namespace
from p2pkv.index.hashing import ROOT, chain_keys

_CONTENT_HASH: Final = re.compile(r"[0-9a-f]{32,128}")


@dataclass(frozen=True, slots=True)
class Item:
    """An image, a sound: something that stands in the prompt in place of `length` tokens from `offset` on."""

    identifier: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What besides its tokens decides a request's KV."""

    cache_salt: str = ""
    lora: str = ""
    """Name and digest of the adapter."""
    items: tuple[Item, ...] = ()

    def extras(self, block: int, block_tokens: int) -> Extras:
        """Return what enters the key of the block with this index."""
        start, end = block * block_tokens, (block + 1) * block_tokens
        multimodal = tuple(
            (item.identifier, item.offset - start)
            for item in self.items
            if item.offset < end and item.offset + item.length > start
        )
        return Extras(lora=self.lora, cache_salt=self.cache_salt, multimodal=multimodal)


class Chains:
    """One chain for each namespace, over the same tokens."""

    def __init__(self, namespaces: Sequence[Namespace], identity: Identity) -> None:
        """Begin with no token.

        Args:
            namespaces: of the spaces, all with blocks of equally many tokens.
            identity: holds for the whole request.
        """
        self._namespaces = namespaces
        self._identity = identity
        self._keys: list[list[BlockKey]] = [[] for _ in namespaces]
        self.tokens = 0
        """How many tokens are known."""

    @property
    def blocks(self) -> int:
        """How many blocks have keys."""
        return len(self._keys[0]) if self._keys else 0

    def keys(self, space: int) -> Sequence[BlockKey]:
        """Return the keys in one space, from the root on."""
        return self._keys[space]

    def extend(self, tokens: Sequence[int]) -> None:
        """Take all tokens that are known, from the first one on; those before the last full block are not read again.

        Raises:
            LocalUseError: a token id out of range. Nothing was added.
        """
        self.tokens = len(tokens)
        if not self._namespaces:
            return
        block_tokens = self._namespaces[0].layout.block_tokens
        first, last = self.blocks, self.tokens // block_tokens
        if last <= first:
            return
        fresh = tokens[first * block_tokens : last * block_tokens]
        extras = [self._identity.extras(block, block_tokens) for block in range(first, last)]
        more = [
            chain_keys(namespace, fresh, extras, parent=keys[-1] if keys else ROOT)
            for namespace, keys in zip(self._namespaces, self._keys, strict=True)
        ]
        for keys, added in zip(self._keys, more, strict=True):
            keys.extend(added)


def names_content(identifier: str) -> bool:
    """Say whether an item's identifier is a digest of its content, perhaps behind an adapter's name.

    An engine may let its users name items themselves. Such a name says nothing about the content on another node.
    """
    return _CONTENT_HASH.fullmatch(identifier.rpartition(":")[2]) is not None
