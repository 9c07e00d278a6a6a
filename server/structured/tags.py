"""Structural tags: free text in which certain beginnings are followed by JSON that fits a schema.

The text may be anything until one of the triggers appears; from then on it continues one of the structures that begin with it, to
their end, and is free again.
"""

from server.errors import InvalidRequest
from server.schema.structured import ResponseFormat, Tag
from server.structured.grammar import lark_string, lark_term
from server.structured.json_schema import json_grammar


def lark_of_tags(asked: ResponseFormat, param: str) -> str:
    """The grammar, in Lark.

    Raises:
        InvalidRequest: there is no structure, or one whose beginning no trigger begins.
    """
    structures, triggers = asked.structures, asked.triggers
    if not structures or not triggers:
        missing = "triggers" if structures else "structures"
        raise InvalidRequest(
            f"`{param}.{missing}` is required with `type` 'structural_tag'", param=f"{param}.{missing}"
        )
    by_trigger: dict[str, list[str]] = {}
    for i, tag in enumerate(structures):
        fitting = [trigger for trigger in triggers if tag.begin.startswith(trigger)]
        if not fitting:
            path = f"{param}.structures[{i}].begin"
            raise InvalidRequest(f"`{path}` must begin with one of `triggers`, got {tag.begin[:60]!r}", param=path)
        trigger = max(fitting, key=len)
        by_trigger.setdefault(trigger, []).append(_body(tag, trigger, f"{param}.structures[{i}].schema"))
    rules = []
    for i, (trigger, bodies) in enumerate(by_trigger.items()):
        rules += [f"trigger_{i}[lazy]: TEXT {lark_string(trigger)}", f"tag_{i}: trigger_{i} ({' | '.join(bodies)})"]
    names = " | ".join(f"tag_{i}" for i in range(len(by_trigger)))
    return "\n".join([f"start: ({names})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/", *rules, ""])


def _body(tag: Tag, trigger: str, param: str) -> str:
    parts = [tag.begin.removeprefix(trigger), tag.end]
    begin, end = (lark_string(part) if part else "" for part in parts)
    return f"{begin} {lark_term(json_grammar(tag.schema_, param))} {end}"
