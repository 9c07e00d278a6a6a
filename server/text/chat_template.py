"""Prompts from conversations: the model's own Jinja template, in a sandbox and with the helpers that transformers gives it.

The text of a message is data for the template and is never evaluated as a template itself. Whether special tokens inside a
message count as such is decided where the prompt is encoded: see `server/text/chat_renderer.py`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from server.text.template_sandbox import TemplateSandbox, TooMuch
from server.text.tokenizer import Tokenizer

MAX_SOURCE_CHARS = 2**20  # the longest in public use has 50,000
MAX_RENDERED_CHARS = 32 * 2**20  # twice the largest default body: stops a template that multiplies its input
# Private-use characters that no template writes. The final space shows whether the template keeps trailing spaces.
_MARK, _MARK_SPACE = "\ue000\ue001\ue000", "\ue000\ue001\ue000 "


class TemplateError(ValueError):
    """The template refused the conversation, failed on it, or is not valid; the message is the template's or Jinja's."""


class _GenerationBlock(Extension):
    """Accepts `{% generation %}`, which marks assistant tokens for training and changes nothing here."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it without ClassVar)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The block's body in place of the block, in a scope of its own, like a call block's."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a prompt must not
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """One compiled template; `render` may be called from any thread.

    Args:
        source: Jinja source.
        special_tokens: variables for the template, such as `bos_token`.
        now: the clock behind `strftime_now`.
        max_chars: the longest prompt, in characters.
        sandbox: what it runs in. In a `TracingSandbox` prompts are `TracedText`.

    Raises:
        TemplateError: the source is not a valid template; the message names the line.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        now: Callable[[], datetime] = datetime.now,
        max_chars: int = MAX_RENDERED_CHARS,
        sandbox: type[TemplateSandbox] = TemplateSandbox,
    ) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"chat template: it has {len(source)} characters, more than {MAX_SOURCE_CHARS}")
        environment = sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        environment.meter(environment.filters, "tojson", _to_json)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: now().strftime(format)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"chat template, line {error.lineno}: {error.message}") from error
        except Exception as error:  # nested too deeply for Jinja's parser or for Python's, a number of too many digits
            raise TemplateError(f"chat template: it cannot be compiled: {type(error).__name__}: {error}") from error
        self.source = source
        self._environment = environment
        self._special_tokens = {name: environment.own(token) for name, token in (special_tokens or {}).items()}
        self._max_chars = max_chars

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt of a conversation, to be encoded with `add_special_tokens=False`: it contains its own BOS.

        Args:
            messages: JSON objects with `role` and `content`, oldest first.
            add_generation_prompt: end with the header of an assistant turn.
            continue_final_message: end inside the last message, so that the answer continues it.
            kwargs: further variables for the template (`chat_template_kwargs`).

        Raises:
            TemplateError: the template refuses or fails, the prompt grows beyond `max_chars`, or the arguments clash.
        """
        if "messages" in kwargs:
            raise TemplateError("chat_template_kwargs may not hold `messages`")
        if continue_final_message:
            if add_generation_prompt:
                raise TemplateError("add_generation_prompt and continue_final_message exclude each other")
            messages = _marked(messages)
        messages = self._environment.with_own_roles(messages)
        variables = {"tools": None, "documents": None, **self._special_tokens, **kwargs}
        text = self._generate({**variables, "messages": messages, "add_generation_prompt": add_generation_prompt})
        return _cut_at_mark(text) if continue_final_message else text

    def _generate(self, variables: dict[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._environment.rendering(self._template.generate(variables), variables):
                pieces.append(piece)
                size += len(piece)
                if size > self._max_chars:
                    raise TemplateError(f"the chat template renders more than {self._max_chars} characters")
        except TemplateError:
            raise
        except jinja2.TemplateError as error:
            raise TemplateError(error.message or type(error).__name__) from error
        except TooMuch as error:
            raise TemplateError(f"the chat template is refused: {error}") from error
        except Exception as error:  # a template is foreign code and may fail in any way on an odd message
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
        return self._environment.concat(pieces)


def _marked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conversation with a mark at the end of its last text."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        return [*messages[:-1], {**messages[-1], "content": content + _MARK_SPACE}]
    if isinstance(content, list):
        for i in range(len(content) - 1, -1, -1):
            part = content[i]
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                parts = [*content[:i], {**part, "text": part["text"] + _MARK_SPACE}, *content[i + 1 :]]
                return [*messages[:-1], {**messages[-1], "content": parts}]
    raise TemplateError("continue_final_message needs a last message with text in its content")


def _cut_at_mark(text: str) -> str:
    """The text before the mark, without trailing spaces if the template trims the message."""
    at = text.rfind(_MARK)
    if at < 0:
        raise TemplateError("continue_final_message: the chat template leaves the final message out")
    return text[:at] if text.startswith(_MARK_SPACE, at) else text[:at].rstrip()


def load_chat_template(
    tokenizer: Tokenizer, path: str | None = None, sandbox: type[TemplateSandbox] = TemplateSandbox
) -> ChatTemplate | None:
    """The operator's template at `path`, else the model's own, else None.

    Raises:
        TemplateError: the file cannot be read or is not a valid template.
    """
    source = tokenizer.model_chat_template or None  # some files hold an empty one
    if path is not None:
        try:
            source = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"chat template {path} cannot be read: {error}") from error
    return None if source is None else ChatTemplate(source, tokenizer.special_tokens, sandbox=sandbox)
