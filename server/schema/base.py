"""The base of every request body, and the tables that say what happens to a field that is not served."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from configs.settings import Settings
from server.schema.shown import shown

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
INT32_MAX = 2**31 - 1  # counts and token ids; the model's own bounds are checked where the model is known

T = TypeVar("T")
# Every array of a body is read up to its first wrong entry, which is all that a refusal names. Of a million wrong ones pydantic
# would else report a million, for seconds in which nothing else of the process runs.
Array = Annotated[list[T], Field(fail_fast=True)]


class Body(BaseModel):
    """A JSON object of a request. Every field declared here is honoured; the tables name all others that are known.

    Types are strict (`"1"` is not a number), nulls are dropped before a body gets here, and a field that is neither declared
    nor in a table is unknown.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    # Accepted without effect: they cannot change the output.
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    # Known but not served; the values listed ask for nothing and are therefore accepted.
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # Fields of another endpoint that clients mix up with this one, and that endpoint.
    ELSEWHERE: ClassVar[dict[str, str]] = {}
    # Fields in which a null says something, such as a JSON schema's `const`; elsewhere it is the same as absence.
    VERBATIM: ClassVar[frozenset[str]] = frozenset()
    # Fields that an operator bounds otherwise than their namesakes of other bodies, and the name of that bound (`limits.OTHERWISE`)
    LIMITED: ClassVar[Mapping[str, str]] = {}
    # Fields that hold an object of this kind, or of one of these kinds, or an array of them.
    NESTED: ClassVar[Mapping[str, "type[Body] | Kinds"]] = {}

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """What fields mean for each other, as JSON schemas that a body fits all of. They publish checks that are made elsewhere."""
        return []

    @classmethod
    @cache
    def names(cls) -> frozenset[str]:
        """The names of its fields in JSON."""
        return frozenset({field.alias or name for name, field in cls.model_fields.items()})

    @classmethod
    def known(cls) -> set[str]:
        """Every field name that has a meaning here, served or not."""
        return set(cls.names()) | cls.IGNORED | set(cls.UNSUPPORTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """Objects of several kinds, told apart by one of their fields.

    Attributes:
        field: the one that tells.
        bodies: the kinds that are served.
        default: the kind of an object without that field, if it may be left out.
        unserved: kinds that are known and refused by name.
    """

    field: str
    bodies: Mapping[str, type[Body]]
    default: str | None = None
    unserved: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[type[Body]]:
        """The bodies, each once."""
        return iter(dict.fromkeys(self.bodies.values()))

    def of(self, value: Mapping[str, Any]) -> type[Body] | None:
        """The body that an object must fit; None: it is of no kind that is served."""
        kind = value.get(self.field, self.default)
        return self.bodies.get(kind) if isinstance(kind, str) else None

    def validate(self, value: Any) -> Body:
        """The object, by its kind: for pydantic, which would report on each kind in turn."""
        if not isinstance(value, dict):
            raise wrong(f"must be an object, got {shown(value)}")
        body = self.of(value)
        if body is None:
            names = ", ".join(f'"{name}"' for name in self.bodies)
            if self.field not in value:
                raise wrong(f"is required, one of {names}", f".{self.field}")
            raise wrong(f"must be one of {names}, got {shown(value[self.field])}", f".{self.field}")
        return body.model_validate(value)


def bodies_in(nested: "type[Body] | Kinds") -> list[type[Body]]:
    """All kinds of objects that a field of `Body.NESTED` may hold."""
    return list(nested) if isinstance(nested, Kinds) else [nested]


def wrong(message: str, path: str = "") -> PydanticCustomError:
    """An error of a field's own check, for raising inside a pydantic validator.

    Args:
        message: completes the sentence "`field` ...": `must be a string, got 3`.
        path: where inside the field, as a path suffix: `[3]`, `.50256`, or nothing.
    """
    return PydanticCustomError("checked", "{message}", {"message": message, "path": path})


def where(field: str, *values: Any) -> dict[str, Any]:
    """The bodies in which a field has one of these values, as a JSON schema. None stands for its absence too."""
    fits: dict[str, Any] = {"properties": {field: {"type": "null"} if values == (None,) else {"enum": list(values)}}}
    return fits if None in values else {**fits, "required": [field]}


def given(field: str) -> dict[str, Any]:
    """The bodies that have a field."""
    return {"properties": {field: {"not": {"type": "null"}}}, "required": [field]}


def either(*schemas: dict[str, Any]) -> dict[str, Any]:
    """The bodies that fit any of these."""
    return {"anyOf": list(schemas)}


def both(*schemas: dict[str, Any]) -> dict[str, Any]:
    """The bodies that fit all of these."""
    return {"allOf": list(schemas)}
