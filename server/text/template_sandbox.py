"""A Jinja environment for templates that nobody vouches for: what one rendering may do is bounded in work and in memory.

Jinja's own sandbox keeps a template away from Python's internals, and from nothing else: `'a' * 10**10` takes all memory,
two nested loops take forever, `[x, x]` in a loop makes a text of 2^n characters. Here every rendering has an allowance. A
character that is made, compared or written costs a unit, a step (an operation, an iteration, a call) 64, an entry of a list
that is read 128; what grows by more than its inputs (a product, a width, a join) is paid for before it is made. The count
depends on the template and the conversation alone, never on the machine.

The syntax tree is rewritten for what Jinja has no hook for: iterations, comparisons, `~`, slices, keys.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import BuiltinFunctionType
from typing import Any, TypeVar

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

STEP, ENTRY = 64, 128  # units; a step takes about a microsecond
BASE_UNITS = 2**23  # 130,000 steps; templates in public use take some tens for a message
UNITS_FOR_INPUT = 16  # more for each unit of the conversation
MOST_UNITS = 2**30
MAX_DEPTH = 200  # of lists in lists: hashing and writing them recurse in C
MAX_INT_BITS = 4096

# Filters that no template can name, as they hold a space.
_SPEND, _TOUCH, _SLICED = "meter spend", "meter touch", "meter sliced"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNFIT = _words("pprint random striptags urlize wordwrap xmlattr")  # of no use in a prompt
_FLAT = _words("batch items list map reject rejectattr reverse select selectattr slice")  # do not look into entries
_FREE = _words("attr count d default first get keys last length values")
_LAZY = _FLAT | _FREE
_TIMES_ARGUMENT = _words("batch center expandtabs indent ljust rjust round slice to_bytes tojson zfill")
_METHODS = _words(
    """bit_length capitalize casefold center copy count decode encode endswith expandtabs find format format_map get hex index
    is_integer isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper
    items join keys ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip
    split splitlines startswith strip swapcase title to_bytes upper values zfill"""
)
_BUILT_IN = (str, bytes, list, tuple, dict, int, float)
_SEQUENCES: tuple[type[Any], ...] = (
    list,
    tuple,
    range,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


class TooMuch(Exception):
    """A rendering asks for more than its allowance, or for a value of no bounded size."""


class Allowance:
    """What a rendering may still spend, in units."""

    def __init__(self, units: int) -> None:
        self.units = self.left = units

    def spend(self, units: int) -> None:
        """Take this off.

        Raises:
            TooMuch: there is not as much left, now or ever after.
        """
        self.left -= max(0, units)
        if self.left < 0:
            raise TooMuch(f"it needs more than {self.units} units of work, which is all that this conversation allows")

    def spent(self, units: int) -> bool:
        """`spend` within an expression: true."""
        self.spend(units)
        return True

    def copied(self, value: Any) -> Any:
        """Pay for a copy that shares its entries; the copy."""
        if isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, _SEQUENCES):
            self.spend(8 * len(value))
        return value

    def touch(self, value: Any) -> Any:
        """Pay for reading the whole of a value; the value."""
        kind = type(value)
        if kind is str:
            self.spend(len(value))
        elif kind is not int and kind is not bool and value is not None:
            self.spend(weight(value, self.left))
        return value


def weight(value: Any, most: int) -> int:
    """The units of a value with all that is in it, as often as it is in it. Counting ends beyond `most`.

    Raises:
        TooMuch: lists are nested deeper than `MAX_DEPTH`.
    """
    total, todo = 0, [(value, 0)]
    while todo and total <= most:
        item, depth = todo.pop()
        if isinstance(item, str | bytes):
            total += len(item)
            continue
        total += ENTRY
        inside = _inside(item)
        if inside:
            if depth == MAX_DEPTH:
                raise TooMuch(f"it nests lists deeper than {MAX_DEPTH} levels")
            total += 8 * len(inside)
            todo += [(each, depth + 1) for each in inside] if len(inside) <= most - total else []
    return total


def _inside(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item, *item.values()]
    if isinstance(item, range):
        return []
    if isinstance(item, _SEQUENCES):
        return list(item)
    if isinstance(item, Namespace):
        attributes: dict[str, Any] = item._Namespace__attrs
        return _inside(attributes)
    return []


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with an allowance for each rendering; see `rendering`."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=self._written, optimized=False)
        for name in _UNFIT:
            del self.filters[name]
        del self.globals["lipsum"]
        self._allowance: ContextVar[Allowance] = ContextVar("allowance")
        for table in (self.filters, self.tests):
            for name, function in list(table.items()):
                self.meter(table, name, function)
        self.filters[_SPEND] = pass_context(lambda context, units: self.allowance.spent(units))
        self.filters[_SLICED] = pass_context(lambda context, value: self.allowance.copied(value))
        self.filters[_TOUCH] = pass_context(lambda context, value: self.allowance.touch(value))

    def own(self, text: str) -> str:
        """The text, as one that the template might have written itself."""
        return text

    def with_own_roles(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The messages, with roles that the template might have written itself."""
        return messages

    @property
    def allowance(self) -> Allowance:
        """The present rendering's."""
        return self._allowance.get()

    def rendering(self, pieces: Iterator[str], variables: Mapping[str, Any]) -> Iterator[str]:
        """The pieces of a template that is rendered with these variables, within the allowance that their size gives.

        Raises:
            TooMuch: it is used up.
        """
        given = weight(dict(variables), MOST_UNITS)
        token = self._allowance.set(Allowance(min(MOST_UNITS, BASE_UNITS + UNITS_FOR_INPUT * given)))
        try:
            yield from pieces
        finally:
            self._allowance.reset(token)

    def meter(self, table: dict[str, Any], name: str, function: Callable[..., Any]) -> None:
        """Put a filter or test into its table, paid for at each call."""
        passed: str = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

        @pass_context  # which also keeps the compiler from calling it for constants
        def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
            first: dict[str, Any] = {"context": context, "eval_context": context.eval_ctx, "environment": self}
            value, *others = [self._counted(arg) for arg in args] or [None]
            self._pay(name, value, [*others, *kwargs.values()])
            result = function(*([first[passed]] if passed else []), value, *others, **kwargs)
            return result if name in _LAZY or table is self.tests else self.allowance.touch(result)

        table[name] = metered

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operation, paid for first."""
        allowance = self.allowance
        if type(left) is str and type(right) is str and operator == "+":  # nearly all that templates compute
            allowance.spend(STEP + len(left) + len(right))
            return left + right
        allowance.spend(STEP)
        sequence, number = (right, left) if isinstance(left, int) else (left, right)
        if operator == "%" and isinstance(left, str):
            allowance.spend(_formatted(left, right))
        elif operator == "*" and isinstance(sequence, str | bytes | list | tuple) and isinstance(number, int):
            allowance.spend(weight(sequence, allowance.left) * max(0, number))
        elif isinstance(left, int) and isinstance(right, int):
            _check_bits(operator, left, right)
        elif operator == "+":
            allowance.copied(left)
            allowance.copied(right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's form of `str.format`, paid for."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def metered(*args: Any, **kwargs: Any) -> str:
            self._pay("format", value.__self__, [*args, *kwargs.values()])
            text: str = self.allowance.touch(wrapped(*args, **kwargs))
            return text

        return metered

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The call, paid for. Of the methods of Python's own types, those whose results are bounded.

        Raises:
            TooMuch: another of them.
        """
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        args = tuple(map(__self._counted, args))
        if not (isinstance(owner, _BUILT_IN) or isinstance(__obj, BuiltinFunctionType)):
            owner = None
            __self.allowance.spend(STEP * (1 + len(args)))
            for arg in (*args, *kwargs.values()):
                __self.allowance.touch(arg)
        elif isinstance(owner, _BUILT_IN) and name in _METHODS:
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                __self._pay("join", args[0], [owner])
            else:
                __self._pay(name, owner, [*args, *kwargs.values()])
        else:
            raise TooMuch(f"it calls {name}, which is not for templates")
        result = super().call(__context, __obj, *args, **kwargs)
        return result if owner is None or name in _LAZY else __self.allowance.touch(result)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Meters().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    @pass_context  # which keeps the compiler from calling it
    def _written(self, context: Context, value: Any) -> Any:
        return self.allowance.touch(value)

    def _counted(self, value: Any) -> Any:
        """The same, where it is an iterator with each item paid for."""
        if not hasattr(value, "__next__"):
            return value
        return (item for item in value if self.allowance.spent(ENTRY))

    def _pay(self, name: str, value: Any, others: list[Any]) -> None:
        """Before a filter or a method of this name works on `value`."""
        allowance = self.allowance
        allowance.spend(STEP * (1 + len(others)))
        for other in others:
            allowance.touch(other)
        if name in _FLAT:
            allowance.copied(value)
        elif name not in _FREE:
            allowance.touch(value)
        if name in _TIMES_ARGUMENT:
            most = max(
                (abs(each) if isinstance(each, int) else len(each) for each in others if _measured(each)), default=0
            )
            allowance.spend(most * max(ENTRY, weight(value, allowance.left)))
        elif name == "replace" and len(others) >= 2 and all(isinstance(each, str) for each in (value, *others[:2])):
            allowance.spend(value.count(others[0]) * len(others[1]))
        elif name == "join" and others and isinstance(others[0], str):
            allowance.spend(len(others[0]) * (len(value) if hasattr(value, "__len__") else ENTRY))
        elif name in ("format", "format_map") and isinstance(value, str):
            allowance.spend(_formatted(value, others))


def _measured(value: Any) -> bool:
    return isinstance(value, int | str)


def _check_bits(operator: str, left: int, right: int) -> None:
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * max(0, right)
    if bits > MAX_INT_BITS:
        raise TooMuch(f"a number in it has more than {MAX_INT_BITS} bits")


def _formatted(pattern: str, values: Any) -> int:
    """Most units of a text that a format string makes of values: each place may write them all, as wide as a number says."""
    widths = sum(int(digits[:12]) for digits in re.findall(r"\d+", pattern))
    places = pattern.count("%") + pattern.count("{")
    given = weight(values, MOST_UNITS)
    if "*" in pattern or re.search(r"[:!][^{}]*\{", pattern):  # widths among the values
        given += max((abs(value) for value in _numbers(values)), default=0)
    return len(pattern) + widths + places * given


def _numbers(values: Any) -> Iterator[int]:
    for value in _inside(values) or [values]:
        if isinstance(value, int):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _numbers(value)


_Body = TypeVar("_Body", nodes.For, nodes.Macro, nodes.CallBlock)


class _Meters(NodeTransformer):
    """Puts a payment in front of what Jinja has no hook for."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Each iteration, and each item that the loop's condition leaves out."""
        self.generic_visit(node)
        price = STEP + _written(node.body)
        if node.test is not None:
            node.test = nodes.And(_filter(nodes.Const(STEP), _SPEND, node.lineno), node.test, lineno=node.lineno)
        return _paid(node, price)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        """Each call."""
        self.generic_visit(node)
        return _paid(node, STEP + _written(node.body))

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        """Each call of the block."""
        self.generic_visit(node)
        return _paid(node, STEP + _written(node.body))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        """Both sides of a comparison."""
        self.generic_visit(node)
        node.expr = _touched(node.expr)
        for operand in node.ops:
            operand.expr = _touched(operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        """All that `~` joins."""
        self.generic_visit(node)
        node.nodes = [_touched(each) for each in node.nodes]
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        """A key of a dictionary, which is hashed."""
        self.generic_visit(node)
        node.key = _touched(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        """A key, or the copy that a slice makes."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filter(node, _SLICED, node.lineno)
        node.arg = _touched(node.arg)
        return node


def _filter(node: nodes.Expr, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


def _touched(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filter(node, _TOUCH, node.lineno)


def _paid(node: _Body, price: int) -> _Body:
    node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(price), _SPEND, node.lineno), lineno=node.lineno))
    return node


def _written(body: list[nodes.Node]) -> int:
    """Characters of the template itself in a body."""
    return sum(len(data.data) for node in body for data in _data(node))


def _data(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    for child in node.iter_child_nodes():
        yield from _data(child)
