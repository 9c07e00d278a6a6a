"""The items of a response: what goes into one, and comes out of it to go into the next."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from server.schema.base import Body, Kinds
from server.schema.dialects.parts import text_or


class InputText(Body):
    """What somebody says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"prompt_cache_breakpoint"})

    type: Literal["input_text"]
    text: str


class OutputText(Body):
    """What the model said."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"annotations", "logprobs", "parsed"})

    type: Literal["output_text"]
    text: str


class RefusalPart(Body):
    """What another model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


MESSAGE_PARTS = Kinds(
    field="type",
    bodies={"input_text": InputText, "output_text": OutputText, "refusal": RefusalPart},
    unserved=frozenset({"input_audio", "input_file", "input_image"}),
)
_Part = Annotated[
    InputText | OutputText | RefusalPart,
    PlainValidator(MESSAGE_PARTS.validate, json_schema_input_type=InputText | OutputText | RefusalPart),
]
_Parts = Annotated[
    list[_Part],
    BeforeValidator(
        text_or("content parts", lambda text: {"type": "input_text", "text": text}),
        json_schema_input_type=str | list[_Part],
    ),
]


class InputMessage(Body):
    """A message of the conversation; those of the assistant are what came out of earlier responses."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"id", "phase", "status"})
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"content": MESSAGE_PARTS}

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: _Parts = Field(description="Text, or parts.")


ITEMS = Kinds(
    field="type",
    bodies={"message": InputMessage},
    default="message",
    unserved=frozenset(
        {
            *("apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction", "computer_call"),
            *("computer_call_output", "custom_tool_call", "custom_tool_call_output", "file_search_call"),
            *("function_call", "function_call_output", "image_generation_call", "item_reference", "local_shell_call"),
            *("local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools"),
            *("reasoning", "shell_call", "shell_call_output", "web_search_call"),
        }
    ),
)
InputItem = Annotated[InputMessage, PlainValidator(ITEMS.validate, json_schema_input_type=InputMessage)]
_Items = Annotated[list[InputItem], Field(min_length=1)]
Input = Annotated[
    _Items,
    BeforeValidator(
        text_or("items", lambda text: {"role": "user", "content": text}), json_schema_input_type=str | _Items
    ),
]
ItemObject = dict[str, Any]
