"""The one codec of messages between our processes: two ZeroMQ frames, the type's name and its msgpack body. Nothing is pickled.

A codec has a vocabulary, the message types that may cross one wire in one direction; whatever lies outside is refused.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

Message = TypeVar("Message")
_SHOWN = 40  # bytes of a refused type name that the error quotes


class ProtocolError(Exception):
    """A message lies outside the vocabulary of its wire."""


class MessageCodec(Generic[Message]):
    """Encodes and decodes the messages of one wire.

    Args:
        types: the vocabulary: dataclasses, told apart by their names.
    """

    def __init__(self, types: Sequence[type[Any]]) -> None:
        self._names = {kind: kind.__name__.encode() for kind in types}
        self._decoders = {name: msgspec.msgpack.Decoder(kind) for kind, name in self._names.items()}
        if len(self._decoders) < len(types):
            raise ValueError("two message types of one wire have the same name")
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, message: Message) -> list[bytes]:
        """The frames of a message.

        Raises:
            ProtocolError: its type is not in the vocabulary.
        """
        name = self._names.get(type(message))
        if name is None:
            raise ProtocolError(f"{type(message).__name__} is not a message of this wire")
        return [name, self._encoder.encode(message)]

    def decode(self, frames: Sequence[bytes]) -> Message:
        """The message in these frames.

        Raises:
            ProtocolError: not two frames, an unknown name, or a body that is not of that type.
        """
        if len(frames) != 2:
            raise ProtocolError(f"a message has two frames, not {len(frames)}")
        name, body = frames
        decoder = self._decoders.get(name)
        if decoder is None:
            raise ProtocolError(f"{name[:_SHOWN]!r} is not a message of this wire")
        try:
            message: Message = decoder.decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
            raise ProtocolError(f"the body of {name.decode()} does not fit: {error}") from error
        return message
