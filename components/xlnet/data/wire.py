"""Reads the wire format of protocol buffers: numbered fields, without a description of their message."""

from collections.abc import Iterator


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field's number and value: whole numbers, and bytes for texts, messages and fixed-width numbers.

    Raises:
        IndexError: the message ends within a field.
        ValueError: it is no such message.
    """
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = varint(message, at)
            case 1 | 2 | 5 as kind:
                size, at = varint(message, at) if kind == 2 else (8 if kind == 1 else 4, at)
                value, at = message[at : at + size], at + size
                if at > len(message):
                    raise IndexError("the message ends within a field")
            case kind:
                raise ValueError(f"a field has the unknown wire type {kind}")
        yield key >> 3, value


def first_bytes(message: bytes, number: int) -> bytes:
    """Return the first field of this number that holds bytes; empty if there is none."""
    return next((value for found, value in fields(message) if found == number and isinstance(value, bytes)), b"")


def varint(message: bytes, at: int) -> tuple[int, int]:
    """Read a whole number of variable length; return it and the place behind it. Raises IndexError at the end."""
    value, shift = 0, 0
    while message[at] & 0x80:
        value, shift, at = value | (message[at] & 0x7F) << shift, shift + 7, at + 1
    return value | message[at] << shift, at + 1
