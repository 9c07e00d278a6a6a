"""Names of the parts of a split GGUF model, as `llama-gguf-split` gives them: `NAME-00001-of-00003.gguf`, counted from 1."""

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PartName:
    """What the name of a part says.

    Attributes:
        stem: the model's own name.
        number: which part it is, from 1.
        count: how many parts there are.
    """

    stem: str
    number: int
    count: int

    @classmethod
    def of(cls, path: Path) -> "PartName | None":
        """What the name of this file says; None if it is not named as a part."""
        found = _NAME.fullmatch(path.name)
        if found is None:
            return None
        part = cls(found["stem"], int(found["number"]), int(found["count"]))
        return part if 1 <= part.number <= part.count else None

    def file(self, number: int) -> str:
        """The name of the part of this number."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}.gguf"


def first_part(path: Path) -> Path:
    """The part that describes the model of which `path` is a part, if it is there; otherwise `path` itself."""
    part = PartName.of(path)
    first = path if part is None else path.with_name(part.file(1))
    return first if first.is_file() else path


def model_stem(path: Path) -> str:
    """The name of the model in this file, without what says which part of it the file is."""
    part = PartName.of(path)
    return path.stem if part is None else part.stem
