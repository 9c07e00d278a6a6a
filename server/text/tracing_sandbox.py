"""The template sandbox, with the template's own text told from all else (`TracedText`).

A template's text is what stands between its tags and in its string literals, the model's special tokens, and the role of a
message, which is one of a few words. All other strings are the client's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.filters import do_join
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from server.text.template_sandbox import TemplateSandbox
from server.text.traced_text import TracedText

# Filters that no template can name, as they hold a space.
_WRITTEN, _JOINED = "trace written", "trace joined"
_ROLES = frozenset({"assistant", "developer", "system", "tool", "user"})


class TracingSandbox(TemplateSandbox):
    """`TemplateSandbox` whose renderings are `TracedText`."""

    concat = staticmethod(TracedText.joined)  # what Jinja puts the pieces of a template, block or macro together with

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.meter(self.filters, "join", _join)
        self.filters[_WRITTEN] = pass_context(lambda context, text: TracedText.written(text))
        self.filters[_JOINED] = _joined

    def own(self, text: str) -> str:
        """The text as the template's."""
        return TracedText.written(text)

    def with_own_roles(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The messages with known roles as the template's text: many write a marker around it."""
        return [{**each, "role": self.own(each["role"])} if each.get("role") in _ROLES else each for each in messages]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Tracer().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree


@pass_eval_context
def _join(context: EvalContext, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    joined: str = do_join(context, value, d if isinstance(d, TracedText) else TracedText(d), attribute)
    return joined


@pass_context
def _joined(context: Context, values: Iterable[Any]) -> str:
    return TracedText.joined(map(str, values))


class _Tracer(NodeTransformer):
    """Marks the texts of a template, and joins what `~` joins with their marks."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:
        """Text between tags."""
        return _filter(nodes.Const(node.data, lineno=node.lineno), _WRITTEN)

    def visit_Const(self, node: nodes.Const) -> nodes.Expr:
        """A literal."""
        return _filter(node, _WRITTEN) if isinstance(node.value, str) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        """All that `~` joins."""
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
