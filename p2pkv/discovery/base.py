"""What a resolver promises, and what it may fail with."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Protocol

from p2pkv.config import parse_address
from p2pkv.errors import ConfigError

TEXT_BYTES_MAX: Final = 64 * 1024
"""Of a file or a command's output that are read; what is longer is refused whole, for it is no list of addresses."""
REASON_CHARACTERS_MAX: Final = 200


class LookupFailed(Exception):
    """A source gave nothing; the message says why, in words for people. It never leaves this folder."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a source gave: addresses, and what of its answer was no use, or nothing."""

    addresses: tuple[str, ...]
    complaint: str = ""


class Resolver(Protocol):
    """One source. Made once; `resolve` is called again and again, never twice at a time."""

    async def resolve(self) -> Found:
        """Look now.

        Raises:
            LookupFailed: there was no answer that is any use.
        """
        ...

    async def aclose(self) -> None:
        """Let go of what is held."""
        ...


def addresses_in(data: bytes) -> Found:
    """Return the addresses in `data`: one a line, white space around it, what follows `#` is a comment.

    Raises:
        LookupFailed: there are lines and none of them is an address.
    """
    found: list[str] = []
    complaint = ""
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            parse_address(text, what=f"line {number}")
            if not text.isascii() or not text.isprintable() or " " in text:
                raise ConfigError(f"line {number} is {text!r}, must be host:port")
        except ConfigError as exc:
            complaint = complaint or shortened(str(exc))
        else:
            found.append(text)
    if complaint and not found:
        raise LookupFailed(complaint)
    return Found(tuple(dict.fromkeys(found)), complaint)


def shortened(text: str) -> str:
    """Return `text` fit for a line of a log or a table."""
    line = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return line if len(line) <= REASON_CHARACTERS_MAX else f"{line[: REASON_CHARACTERS_MAX - 3]}..."


def need(module: str, package: str, *, source: str) -> None:
    """Make sure that `module` can be imported.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec(module) is None:
        raise ConfigError(
            f"node.join has {source!r}, which needs the package {package}", hint="pip install 'p2pkv[discovery]'"
        )
