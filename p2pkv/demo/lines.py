"""What the demo and an engine process say to each other: one JSON object a line, a request and then its answer.

The demo writes to the engine's standard input and reads its standard output; the end of the input ends the engine.
"""

from typing import TypeAlias

import msgspec


class Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="line"):
    """Base of every line."""


class Ask(Line, frozen=True, kw_only=True, tag="ask"):
    """Answer a question about the document. Answered by `Answer`."""

    question: str
    mesh: bool
    """Look for the prompt's beginning in the mesh; without it everything is computed."""
    cache_salt: str = ""
    answer_tokens: int = 32
    """At most so many tokens; a model that is done says so earlier."""


class Publish(Line, frozen=True, kw_only=True, tag="publish"):
    """Give the last prompt's full blocks to the mesh under `cache_salt`. Answered by `Shared`."""

    cache_salt: str


class Reach(Line, frozen=True, kw_only=True, tag="reach"):
    """How much of this question's prompt could come from the mesh? Answered by `Reachable`."""

    question: str
    cache_salt: str


class Digest(Line, frozen=True, kw_only=True, tag="digest"):
    """What are the first `blocks` blocks of the last prompt, as they lie in the engine's tensors? Answered by `Digests`."""

    blocks: int


class Ready(Line, frozen=True, kw_only=True, tag="ready"):
    """First line of an engine: the model is loaded, the connector has its namespace."""

    model: str
    dtype: str
    block_tokens: int
    block_bytes: int
    load_s: float


class From(msgspec.Struct, frozen=True, kw_only=True):
    """A place that blocks came from."""

    peer: str
    """Empty: this node's own memory."""
    transport: str
    blocks: int
    bytes: int


class Answer(Line, frozen=True, kw_only=True, tag="answer"):
    """Answer to `Ask`."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    ttft_ms: float
    """From the question to the first token: tokenizing, looking in the mesh, fetching, computing the rest."""
    hit_blocks: int
    hit_tokens: int
    sources: list[From]
    fetch_ms: float
    build_ms: float
    reason: str
    """Why not more came from the mesh."""


class Shared(Line, frozen=True, kw_only=True, tag="shared"):
    """Answer to `Publish`."""

    stored: int
    present: int
    refused: int
    reason: str


class Reachable(Line, frozen=True, kw_only=True, tag="reachable"):
    """Answer to `Reach`."""

    tokens: int


class Digests(Line, frozen=True, kw_only=True, tag="digests"):
    """Answer to `Digest`."""

    sha256: list[str]


class Broken(Line, frozen=True, kw_only=True, tag="broken"):
    """The engine cannot go on: the last line before it ends."""

    message: str
    hint: str = ""


Request: TypeAlias = Ask | Publish | Reach | Digest
Reply: TypeAlias = Ready | Answer | Shared | Reachable | Digests | Broken
