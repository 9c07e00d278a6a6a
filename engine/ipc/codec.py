"""The one codec of messages between our processes: the type's name, a zero byte, its msgpack body. Nothing is pickled.

It is one frame of ZeroMQ, as a second one would take longer than all that is in them.

A codec has a vocabulary, the message types that may cross one wire in one direction; whatever lies outside is refused.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

Message = TypeVar("Message")
_SHOWN = 40  # bytes of a refused type name that the error quotes
_END = b"\0"  # of the name


class ProtocolError(Exception):
    """A message lies outside the vocabulary of its wire."""


class MessageCodec(Generic[Message]):
    """Encodes and decodes the messages of one wire.

    Args:
        types: the vocabulary: dataclasses, told apart by their names.
    """

    def __init__(self, types: Sequence[type[Any]]) -> None:
        self._names = {kind: kind.__name__.encode() + _END for kind in types}
        self._decoders = {name.removesuffix(_END): msgspec.msgpack.Decoder(kind) for kind, name in self._names.items()}
        if len(self._decoders) < len(types):
            raise ValueError("two message types of one wire have the same name")
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, message: Message) -> bytes:
        """The bytes of a message.

        Raises:
            ProtocolError: its type is not in the vocabulary.
        """
        name = self._names.get(type(message))
        if name is None:
            raise ProtocolError(f"{type(message).__name__} is not a message of this wire")
        return name + self._encoder.encode(message)

    def decode(self, data: bytes) -> Message:
        """The message in these bytes.

        Raises:
            ProtocolError: an unknown name, or a body that is not of that type.
        """
        end = data.find(_END)
        name = data[:end] if end >= 0 else data
        decoder = self._decoders.get(name) if end >= 0 else None
        if decoder is None:
            raise ProtocolError(f"{name[:_SHOWN]!r} is not a message of this wire")
        try:
            message: Message = decoder.decode(memoryview(data)[end + 1 :])
        except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
            raise ProtocolError(f"the body of {name.decode()} does not fit: {error}") from error
        return message
