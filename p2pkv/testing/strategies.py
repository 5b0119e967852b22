"""Hypothesis strategies made from the message classes themselves, so that a new message or field is covered at once.

Bounds come from msgspec's `Meta`, as the decoders take them. Needs `hypothesis`, which p2pkv itself does not.
"""

from typing import Any, Final

from hypothesis import strategies as st
from msgspec import inspect

from p2pkv.local_wire import Reply, Request
from p2pkv.transport.wire import AnyMessage

_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1
"""What msgpack can say."""
_WIDEST_CHARACTER: Final = "\N{GRINNING FACE}"
"""Four bytes of UTF-8: bounds on text count characters."""

HOSTILE: Final[dict[str, bytes]] = {
    "array claiming 4 billion items": b"\xdd\xff\xff\xff\xff",
    "map claiming 4 billion items": b"\xdf\xff\xff\xff\xff",
    "bytes claiming 4 GiB": b"\xc6\xff\xff\xff\xff",
    "string claiming 4 GiB": b"\xdb\xff\xff\xff\xff",
    "string that is not UTF-8": b"\xa1\xff",
    "arrays nested 60,000 deep": b"\x91" * 60_000,
    "maps nested 60,000 deep": b"\x81\xa1x" * 60_000,
    "a code that msgpack never uses": b"\xc1",
    "an extension type": b"\xc7\x03\x01abc",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "the largest integer": b"\xcf" + b"\xff" * 8,
    "the smallest integer": b"\xd3\x80" + bytes(7),
    "not a number": b"\xcb\x7f\xf8" + bytes(6),
    "nil": b"\xc0",
}
"""Fragments of msgpack that have brought decoders down."""


def values(info: inspect.Type) -> st.SearchStrategy[Any]:
    """Return a strategy for every value that a decoder of the type `info` describes takes.

    Raises:
        NotImplementedError: a kind of type that no message has used so far; teach it here.
    """
    match info:
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            low, high = _bounds(info)
            return st.integers(_INT_MIN if low is None else low, _INT_MAX if high is None else high)
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.StrType(min_length=least, max_length=most):
            return st.text(min_size=least or 0, max_size=most)
        case inspect.BytesType(min_length=least, max_length=most):
            return st.binary(min_size=least or 0, max_size=most)
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            return st.lists(values(item), min_size=least or 0, max_size=most).map(tuple)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=5)
        case inspect.UnionType(types=types):
            return st.one_of([values(one) for one in types])
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values(field.type) for field in fields})
        case _:
            raise NotImplementedError(f"no strategy for {info}")


def largest(info: inspect.Type) -> Any:
    """Return the value of the type `info` describes that takes the most bytes on the wire.

    Raises:
        ValueError: something in it has no upper bound.
    """
    match info:
        case inspect.BoolType():
            return True
        case inspect.IntType():
            _, high = _bounds(info)
            return _required(high, info)
        case inspect.StrType(max_length=most):
            return _WIDEST_CHARACTER * _required(most, info)
        case inspect.BytesType(max_length=most):
            return b"\xff" * _required(most, info)
        case inspect.VarTupleType(item_type=item, max_length=most):
            return (largest(item),) * _required(most, info)
        case inspect.UnionType(types=types):
            return max((largest(one) for one in types), key=lambda value: len(repr(value)))
        case inspect.StructType(cls=cls, fields=fields):
            return cls(**{field.name: largest(field.type) for field in fields})
        case _:
            raise ValueError(f"no upper bound: {info}")


def structs_of(kind: object) -> tuple[inspect.StructType, ...]:
    """Return the descriptions of the message classes in `kind`, a class or a union of classes."""
    info = inspect.type_info(kind)
    types = info.types if isinstance(info, inspect.UnionType) else (info,)
    return tuple(one for one in types if isinstance(one, inspect.StructType))


def messages() -> st.SearchStrategy[AnyMessage]:
    """Return a strategy for all messages between agents."""
    return values(inspect.type_info(AnyMessage))


def requests() -> st.SearchStrategy[Request]:
    """Return a strategy for all messages from a client to its daemon."""
    return values(inspect.type_info(Request))


def replies() -> st.SearchStrategy[Reply]:
    """Return a strategy for all messages from a daemon to its client."""
    return values(inspect.type_info(Reply))


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw bytes from `whole`, then spoil them in one to three places: altered, cut, repeated, or made hostile."""
    data = draw(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["alter", "cut", "drop", "repeat", "insert", "overwrite"])):
            case "alter":
                data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "drop":
                data = data[:at] + data[at + draw(st.integers(1, 8)) :]
            case "repeat":
                data = data[:at] + data[at : at + draw(st.integers(1, 8))] * 2 + data[at + 8 :]
            case "insert":
                data = data[:at] + draw(st.sampled_from(list(HOSTILE.values()))) + data[at:]
            case _:
                data = data[:at] + draw(st.sampled_from(list(HOSTILE.values())))
    return data


def _bounds(info: inspect.IntType) -> tuple[int | None, int | None]:
    low = info.ge if info.gt is None else info.gt + 1
    high = info.le if info.lt is None else info.lt - 1
    return low, high


def _required(bound: int | None, info: inspect.Type) -> int:
    if bound is None:
        raise ValueError(f"no upper bound: {info}")
    return bound
