"""What an owner's `Places` say, for those who read its memory themselves."""

from p2pkv.errors import MalformedMessage
from p2pkv.generations import Place
from p2pkv.transport.wire import Places, bit_positions


def places_untrusted(message: object, lease: int, *, peer: str) -> dict[int, Place | None]:
    """Return what a `Places` says of each position it speaks of: a place, or that the block is absent.

    Raises:
        MalformedMessage: it is something else, or of another lease, or does not fit together.
    """
    if not isinstance(message, Places):
        raise MalformedMessage(f"{type(message).__name__} where Places was due", peer=peer)
    placed = bit_positions(message.placed)
    if message.lease != lease or not len(placed) == len(message.offsets) == len(message.generations):
        raise MalformedMessage("Places that do not fit together", peer=peer)
    places: dict[int, Place | None] = dict.fromkeys(bit_positions(message.asked))
    places.update(
        (position, Place(offset, generation))
        for position, offset, generation in zip(placed, message.offsets, message.generations, strict=True)
    )
    return places
