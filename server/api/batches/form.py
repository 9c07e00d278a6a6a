"""A form with one file in it (`multipart/form-data`), which goes to the disk as it comes; its other fields are short."""

from collections.abc import AsyncIterable
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.batches.file_store import NewFile
from server.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from server.schema.shown import shown

_MOST_FIELDS = 16
_MOST_VALUE = 1024  # bytes
_WRITE = 256 * 1024  # bytes that are written at once


@dataclass(slots=True)
class _FormPart:
    """The part that is being read."""

    name: str = ""
    file_name: str | None = None
    value: bytes = b""


class FormReader:
    """Reads one form.

    Args:
        content_type: the header of the request.
        file: takes what the part `file` holds.
        most: bytes of it.

    Attributes:
        fields: the values of the other parts by name.
        file_name: that of the file; None: there was none so far.

    Raises:
        UnsupportedMediaType: it is no form with files.
    """

    def __init__(self, content_type: str | None, file: NewFile, most: int) -> None:
        media, options = parse_options_header(content_type)
        if media.lower() != b"multipart/form-data" or not options.get(b"boundary"):
            told = "nothing" if content_type is None else shown(content_type)
            raise UnsupportedMediaType(
                f"The header Content-Type must be multipart/form-data with a boundary, got {told}"
            )
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self._file, self._most = file, most
        self._part = _FormPart()
        self._header, self._value = b"", b""
        self._waiting = bytearray()
        self._ended = False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._end_all,
            },
        )

    async def read(self, parts: AsyncIterable[bytes]) -> None:
        """Read all of it.

        Raises:
            InvalidRequest: it is no such form.
            BodyTooLarge: the file is longer than may be.
            StorageFull: there is no room for it.
        """
        try:
            async for data in parts:
                self._parser.write(data)
                if len(self._waiting) >= _WRITE:
                    await self._flush()
        except FormParserError as error:
            raise InvalidRequest(f"The body is not multipart/form-data: {error}") from None
        if not self._ended:
            raise InvalidRequest("The body is not multipart/form-data: it ends within a part")
        await self._flush()

    async def _flush(self) -> None:
        data, self._waiting = bytes(self._waiting), bytearray()
        if data:
            await self._file.write(data)

    # --- what the parser finds ---

    def _begin(self) -> None:
        self._part = _FormPart()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                self._part.file_name = options[b"filename"].decode("utf-8", "replace")
        self._header, self._value = b"", b""

    def _headers_end(self) -> None:
        part = self._part
        if part.name in self.fields or (part.name == "file" and self.file_name is not None):
            raise InvalidRequest(f"`{part.name}` must be given once", param=part.name)
        if len(self.fields) == _MOST_FIELDS:
            raise InvalidRequest(f"The form must have at most {_MOST_FIELDS} fields beside the file")
        if part.name == "file":
            if part.file_name is None:
                raise InvalidRequest("`file` must be a file: a part with a filename", param="file")
            self.file_name = part.file_name

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.name == "file":
            if self._file.size + len(self._waiting) + end - start > self._most:
                told = f"`file` must have at most {self._most} bytes (max_file_bytes), and has more"
                raise BodyTooLarge(told, param="file", headers={"Connection": "close"})
            self._waiting += data[start:end]
            return
        part.value += data[start:end]
        if len(part.value) > _MOST_VALUE:
            raise InvalidRequest(f"`{part.name[:100]}` must have at most {_MOST_VALUE} bytes", param=part.name[:100])

    def _end(self) -> None:
        if self._part.name != "file":
            self.fields[self._part.name] = self._part.value.decode("utf-8", "replace")

    def _end_all(self) -> None:
        self._ended = True
