"""The items of a response: what goes into one, and comes out of it to go into the next."""

import base64
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from server.schema.base import Array, Body, Kinds
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
    Array[_Part],
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


class CallItem(Body):
    """A call of an earlier turn."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"async", "caller", "id", "namespace", "status"})

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = Field(description="JSON text.")


OUTPUT_PARTS = Kinds(
    field="type",
    bodies={"input_text": InputText, "output_text": OutputText},
    unserved=frozenset({"input_file", "input_image"}),
)
_OutputPart = Annotated[
    InputText | OutputText, PlainValidator(OUTPUT_PARTS.validate, json_schema_input_type=InputText | OutputText)
]


class CallOutputItem(Body):
    """What came of a call."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"caller", "id", "name", "namespace", "status"})
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"output": OUTPUT_PARTS}

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[
        Array[_OutputPart],
        BeforeValidator(
            text_or("content parts", lambda text: {"type": "input_text", "text": text}),
            json_schema_input_type=str | list[_OutputPart],
        ),
    ] = Field(description="Text, or parts.")


class ReasoningText(Body):
    """What the model thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    """What the model thought in an earlier turn; whether it sees it again, its chat template says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"id", "status"})
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"content": ReasoningText, "summary": ReasoningText}

    type: Literal["reasoning"]
    summary: Array[ReasoningText] = Field(default_factory=list, description="Read where there is nothing else.")
    content: Array[ReasoningText] = Field(default_factory=list, description="The thoughts.")
    encrypted_content: str | None = Field(
        None, description="The thoughts, as this server gave them; what another one has encrypted is left out."
    )


class ItemReference(Body):
    """An item of a stored response, asked with or given: it stands for the item itself."""

    type: Literal["item_reference"]
    id: str = Field(max_length=256, description="Its id.")


_SEAL = "headrace:"


def sealed_text(text: str) -> str:
    """A text for clients that keep nothing but `encrypted_content`. It is opaque, and no secret: they have it in clear, too."""
    return _SEAL + base64.b64encode(text.encode()).decode()


def unsealed_text(sealed: str) -> str:
    """What `sealed_text` was made of; nothing, if it is not of this server."""
    try:
        return base64.b64decode(sealed.removeprefix(_SEAL), validate=True).decode() if sealed.startswith(_SEAL) else ""
    except ValueError:
        return ""


AnyItem = InputMessage | CallItem | CallOutputItem | ReasoningItem | ItemReference
ITEMS = Kinds(
    field="type",
    bodies={
        "message": InputMessage,
        "function_call": CallItem,
        "function_call_output": CallOutputItem,
        "reasoning": ReasoningItem,
        "item_reference": ItemReference,
    },
    default="message",
    unserved=frozenset(
        {
            *("apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction", "computer_call"),
            *("computer_call_output", "custom_tool_call", "custom_tool_call_output", "file_search_call"),
            *("image_generation_call", "local_shell_call"),
            *("local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools"),
            *("shell_call", "shell_call_output", "web_search_call"),
        }
    ),
)
InputItem = Annotated[AnyItem, PlainValidator(ITEMS.validate, json_schema_input_type=AnyItem)]
_Items = Annotated[Array[InputItem], Field(min_length=1)]
Input = Annotated[
    _Items,
    BeforeValidator(
        text_or("items", lambda text: {"role": "user", "content": text}), json_schema_input_type=str | _Items
    ),
]
