"""From a chat body to the tools that its answer may call, and to the conversation as templates know it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.context import ServerContext
from server.errors import InvalidRequest
from server.schema.chat import ChatRequest, Message
from server.schema.shown import some
from server.schema.tools import OfferedFunction, ToolChoice
from server.structured.grammar import Grammar
from server.structured.messages import CallableTool, MessageGrammar
from server.structured.strict_tools import check_strict
from server.text.formats.value_types import JsonTypes, types_of
from server.text.message_parser import MessageForm


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which tools an answer may call.

    Attributes:
        offered: those that the model is told of.
        callable: those that it may call; none where it shall not.
        required: whether it must.
        parallel: whether one answer may hold several calls.
        param: the field that offers them.
    """

    offered: Sequence[OfferedFunction] = ()
    callable: Sequence[OfferedFunction] = ()
    required: bool = False
    parallel: bool = True
    param: str = "tools"

    def for_template(self) -> list[dict[str, Any]]:
        """The offered tools as templates know them: OpenAI's JSON, with what the client gave."""
        return [
            {"type": "function", "function": each.model_dump(exclude_unset=True, exclude={"strict"})}
            for each in self.offered
        ]

    def parameters(self) -> Mapping[str, Mapping[str, JsonTypes]]:
        """By tool that may be called, the types of its parameters by their names, in order."""
        return {each.name: _types(each.parameters) for each in self.callable}


NO_TOOLS = ToolUse()


def _types(parameters: Mapping[str, Any]) -> Mapping[str, JsonTypes]:
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return {}
    return {name: types_of(schema, parameters) for name, schema in properties.items()}


def tool_use(body: ChatRequest) -> ToolUse:
    """What the body says of tools, in either form.

    Raises:
        InvalidRequest: a tool is offered twice, one is chosen that is not offered, or both forms are used.
    """
    older = bool(body.functions) or body.function_call is not None
    if older and (body.tools or body.tool_choice is not None):
        raise InvalidRequest("`functions` is the older form of `tools`, got both", param="functions")
    field, choice = ("functions", "function_call") if older else ("tools", "tool_choice")
    functions = body.functions if older else [tool.function for tool in body.tools]
    _check_names(functions, field)
    chosen = (body.function_call if older else body.tool_choice) or ToolChoice("auto")
    if not functions and chosen.mode == "required":
        raise InvalidRequest(f"`{choice}` needs `{field}` to hold at least one, got none", param=choice)
    if not functions or chosen.mode == "none":
        return NO_TOOLS
    usable = _callable(functions, chosen, choice)
    parallel = body.parallel_tool_calls and not older and not chosen.once
    return ToolUse(functions, usable, chosen.mode == "required", parallel, field)


def _callable(functions: Sequence[OfferedFunction], choice: ToolChoice, param: str) -> Sequence[OfferedFunction]:
    if choice.names is None:
        return functions
    by_name = {each.name: each for each in functions}
    unknown = [name for name in choice.names if name not in by_name]
    if unknown:
        offered = some(f'"{name}"' for name in by_name)
        raise InvalidRequest(
            f'`{param}` must name functions that are offered, {offered}, got "{unknown[0][:64]}"', param=param
        )
    return [by_name[name] for name in choice.names]


def _check_names(functions: Sequence[OfferedFunction], field: str) -> None:
    first: dict[str, int] = {}
    for i, each in enumerate(functions):
        if first.setdefault(each.name, i) != i:
            path = f"{field}[{i}].name" if field == "functions" else f"{field}[{i}].function.name"
            raise InvalidRequest(f'`{path}` must not be given twice, got "{each.name}"', param=path)


def message_grammar(
    form: MessageForm | None, use: ToolUse, content: Grammar | None, context: ServerContext
) -> Grammar | None:
    """What the text of a message has to fit: calls as they are read, after what is thought, beside what was asked for.

    Args:
        form: how the message is read.
        use: the tools that it may call.
        content: what it has to fit where it does not call.

    Raises:
        InvalidRequest: a grammar of the client's own is asked for beside tools.
    """
    if form is None or not (use.callable or (content is not None and form.reasoning is not None)):
        return content
    if content is not None and content.kind == "lark":
        if use.callable:
            message = f"`{content.param}` cannot be asked for beside `{use.param}`: an answer fits one of them"
            raise InvalidRequest(message, param=content.param)
        return content
    tools = [CallableTool(each.name, each.parameters, each.strict) for each in use.callable]
    for each in tools:
        if each.strict and form.tools is not None:
            check_strict(each, form.tools, f'{use.param}["{each.name}"].parameters')
    tokenizer = context.tokenizer
    special = {tokenizer.added_tokens[token]: token for token in tokenizer.special_ids if tokenizer.added_tokens[token]}
    grammar = MessageGrammar(form, tools, special, required=use.required, parallel=use.parallel, content=content)
    # Models call tools without a grammar, too: one that cannot be compiled is no reason to refuse what promises nothing.
    spared = content is None and not use.required and not any(each.strict for each in tools)
    return Grammar("lark", grammar.lark(), use.param if tools or content is None else content.param, spared)


def for_template(message: Message) -> dict[str, Any]:
    """A message as templates know it."""
    # Templates of the served architectures do not know "developer", OpenAI's newer name for the system role.
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    told: dict[str, Any] = {"role": role, "content": message.content}
    if message.name is not None:
        told["name"] = message.name
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in message.tool_calls
    ]
    if message.function_call is not None:
        past = message.function_call
        calls.append({"id": "", "type": "function", "function": {"name": past.name, "arguments": past.arguments}})
    if calls:
        told["tool_calls"] = calls
    thought = message.reasoning_content or message.reasoning
    if thought:
        told |= {"reasoning_content": thought, "reasoning": thought}
    return told
