"""What an answer has to fit: `response_format` as at OpenAI, `structured_outputs` as in vLLM."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from configs.settings import Settings
from server.schema.base import Array, Body, both, either, given, where, wrong
from server.schema.shown import shown

MAX_CHOICES = 10_000
MAX_TAGS, MAX_TRIGGERS = 1000, 100  # each tag is held against each trigger


def check_schema(value: Any) -> dict[str, Any] | bool | str:
    """A JSON schema: an object or a boolean, or the text of one. Its keywords are checked where it is compiled."""
    if isinstance(value, dict | bool | str):
        return value
    raise wrong(f"must be a JSON schema (an object, a boolean, or the JSON text of one), got {shown(value)}")


def check_choices(value: Any) -> list[str]:
    """A non-empty array of texts, none empty."""
    if not isinstance(value, list) or not value:
        raise wrong(f"must be a non-empty array of strings, got {shown(value)}")
    if len(value) > MAX_CHOICES:
        raise wrong(f"must have at most {MAX_CHOICES} entries, got {len(value)}")
    for i, item in enumerate(value):
        if not isinstance(item, str) or not item:
            raise wrong(f"must be a string of at least 1 character, got {shown(item)}", f"[{i}]")
    return value


Schema = Annotated[
    dict[str, Any] | bool | str,
    PlainValidator(check_schema),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "boolean"}, {"type": "string"}]}),
]
Choices = Annotated[
    list[str],
    PlainValidator(check_choices),
    WithJsonSchema(
        {"type": "array", "minItems": 1, "maxItems": MAX_CHOICES, "items": {"type": "string", "minLength": 1}}
    ),
]
Source = Annotated[str, Field(min_length=1)]


class JsonSchemaFormat(Body):
    """The schema of `response_format`."""

    name: str | None = Field(None, max_length=256, description="What it is called; the model does not see it.")
    description: str | None = Field(None, description="What it is for; the model does not see it.")
    schema_: Schema | None = Field(None, alias="schema", description="The JSON schema; any JSON object if absent.")
    strict: bool = Field(False, description="The answer fits the schema in either case.")


class Tag(Body):
    """One structure of a structural tag."""

    begin: Source = Field(description="The text that begins it; what follows has to fit.")
    schema_: Schema = Field(alias="schema", description="The JSON schema of what is between.")
    end: str = Field("", description="The text that follows.")


class ResponseFormat(Body):
    """The form of the whole answer."""

    NESTED: ClassVar[dict[str, type[Body]]] = {"json_schema": JsonSchemaFormat, "structures": Tag}
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"format": ()}

    type: Literal["text", "json_object", "json_schema", "structural_tag"] = Field(
        description="`text` asks for nothing; `structural_tag`, as in vLLM: free text with well-formed structures in it."
    )
    json_schema: JsonSchemaFormat | None = Field(None, description="With `type` `json_schema`.")
    structures: Array[Tag] | None = Field(
        None, min_length=1, max_length=MAX_TAGS, description="With `type` `structural_tag`."
    )
    triggers: Array[Source] | None = Field(
        None,
        min_length=1,
        max_length=MAX_TRIGGERS,
        description="With `type` `structural_tag`: texts of which one begins each structure's `begin`.",
    )

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """What goes with which `type`."""
        no_schema, no_tags = where("json_schema", None), both(where("structures", None), where("triggers", None))
        return [
            either(
                both(where("type", "text", "json_object"), no_schema, no_tags),
                both(where("type", "json_schema"), given("json_schema"), no_tags),
                both(where("type", "structural_tag"), given("structures"), given("triggers"), no_schema),
            )
        ]


class StructuredOutputs(Body):
    """vLLM's form. One of the constraints, and what goes with it."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"disable_fallback"})  # there is one implementation

    json_: Schema | None = Field(None, alias="json", description="A JSON schema.")
    json_object: bool = Field(False, description="Any JSON object.")
    regex: Source | None = Field(None, description="A regular expression that the whole answer fits.")
    choice: Choices | None = Field(None, description="The answer is one of these.")
    grammar: Source | None = Field(None, description="A grammar: Lark as llguidance reads it, or GBNF.")
    structural_tag: str | None = Field(None, description="`response_format` of type `structural_tag`, as JSON text.")
    whitespace_pattern: Source | None = Field(
        None,
        description="With `json` or `json_object`: what may stand between two JSON tokens, as a regular expression.",
    )
    disable_any_whitespace: bool = Field(
        False, description="With `json` or `json_object`: no space between JSON tokens."
    )
    disable_additional_properties: bool = Field(
        False, description="With `json`: objects have the named properties only, where the schema does not say."
    )
