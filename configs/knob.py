"""What `Settings` declares, as plain data: flags, variables, YAML keys and the reference page are all derived from it.

What belongs here: reading the declaration. Never: reading a file, the environment or the command line.
"""

import json
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from configs.settings import Settings

PREFIX = "HEADRACE_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One field of `Settings`. `lower` and `upper` are inclusive unless `open_below`; None means unbounded."""

    name: str
    kind: type  # bool, int, float or str; the type of one item if `many`
    many: bool
    item: str  # what an item has to be, in words, if there is more to say than its type
    optional: bool
    choices: tuple[Any, ...]
    lower: float | None
    upper: float | None
    open_below: bool
    default: Any
    section: str
    secret: bool
    never_empty: bool  # an empty text is refused where it would unset others
    bare: str | None  # what the flag means without a value; None: it needs one
    help: str

    @property
    def flag(self) -> str:
        """The command-line flag; the model is the one positional argument instead."""
        return "MODEL" if self.name == "model" else "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.upper()

    @property
    def domain(self) -> str:
        """What is accepted, in words: `an integer from 1 to 4096`."""
        if self.choices:
            words = ", ".join(str(choice) for choice in self.choices)
            one = f"one of {words}" if len(self.choices) > 1 else words
            return f"a list, each item {one}" if self.many else one
        noun = {bool: "true or false", int: "an integer", float: "a number", str: "text"}[self.kind]
        if self.many:
            noun = (
                "a list of non-empty texts"
                if self.kind is str and not self.item
                else f"a list, each item {self.item or noun}"
            )
        return noun + self._range()

    @property
    def default_text(self) -> str:
        """The default, in words: `default 8000`."""
        if self.default is None or self.default == []:
            return "default none"
        return f"default {json.dumps(self.default)}" if self.kind is bool else f"default {self.default}"

    @property
    def metavar(self) -> str:
        """What stands for the value in a usage line."""
        if self.choices:
            return "{" + ",".join(str(choice) for choice in self.choices) + "}"
        return {bool: "BOOL", int: "N", float: "X", str: "TEXT"}[self.kind]

    def _range(self) -> str:
        lower = "" if self.lower is None else f"{self.lower:.15g}"
        upper = "" if self.upper is None else f"{self.upper:.15g}"
        if not lower and not upper:
            return ""
        if self.open_below:
            return f" above {lower}" + (f" and at most {upper}" if upper else "")
        if lower and upper:
            return f" from {lower} to {upper}"
        return f" of at least {lower}" if lower else f" of at most {upper}"

    def parse(self, text: str) -> Any:
        """The value that a flag or a variable spells; text that spells none is returned as it is, for `Settings` to refuse.

        The items of a list are separated by commas; an empty text unsets an optional value, unless that one is `never_empty`.
        """
        if self.many:
            return [item.strip() for item in text.split(",") if item.strip()]
        if not text and self.optional and not self.never_empty:
            return None
        return next((choice for choice in self.choices if str(choice) == text), text)


@cache
def knobs() -> dict[str, Knob]:
    """Every knob by name, in the order of the declaration."""
    return {name: _read(name, info) for name, info in Settings.model_fields.items()}


def sections() -> dict[str, list[str]]:
    """The names of the knobs by section, both in the order of the declaration."""
    grouped: dict[str, list[str]] = {}
    for name, knob in knobs().items():
        grouped.setdefault(knob.section, []).append(name)
    return grouped


def _read(name: str, info: FieldInfo) -> Knob:
    bounds = dict(_bounds(info.metadata))
    annotation, optional, many, item = info.annotation, False, False, ""
    while (origin := get_origin(annotation)) is not Literal and origin is not None:
        arguments = get_args(annotation)
        if origin is Annotated:
            bounds |= _bounds(bound for meta in arguments[1:] for bound in getattr(meta, "metadata", [meta]))
            item = next((meta.description for meta in arguments[1:] if getattr(meta, "description", None)), item)
        elif origin is list:
            many = True
        elif origin in (Union, types.UnionType):
            optional = True
            arguments = tuple(argument for argument in arguments if argument is not type(None))
        else:
            raise TypeError(f"Settings.{name}: a knob cannot be of type {annotation}")
        annotation = arguments[0]
    choices = get_args(annotation)
    kind: Any = type(choices[0]) if choices else annotation
    if kind not in (bool, int, float, str):
        raise TypeError(f"Settings.{name}: a knob cannot be of type {annotation}")
    extra = info.json_schema_extra
    if not isinstance(extra, dict) or "section" not in extra:
        raise TypeError(f"Settings.{name}: a knob needs a section in its json_schema_extra")
    return Knob(
        name=name,
        kind=kind,
        many=many,
        item=item,
        optional=optional,
        choices=choices,
        lower=bounds.get("gt", bounds.get("ge")),
        upper=bounds.get("le"),
        open_below="gt" in bounds,
        default=info.get_default(call_default_factory=True),
        section=str(extra["section"]),
        secret=bool(extra.get("secret")),
        never_empty=bool(extra.get("never_empty")),
        bare=None if extra.get("bare") is None else str(extra["bare"]),
        help=info.description or "",
    )


def _bounds(metadata: Iterable[Any]) -> Iterator[tuple[str, float]]:
    for item in metadata:
        for bound in ("ge", "gt", "le"):
            value = getattr(item, bound, None)
            if value is not None:
                yield bound, value
