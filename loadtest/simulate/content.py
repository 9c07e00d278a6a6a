"""Token ids for a trace's prompts: meaningless, but equal exactly where the trace says that the text is equal.

A stretch of equal text is one id, repeated: block hashes are chained, so blocks differ by their position and what precedes them.

    blocks      each part is its block id, repeated; equal leading parts are a shared prefix
    sessions    all prompts of a session repeat one id, so that they extend one another; answers are not part of them, because
                a client that plans its prompts cannot know them
    prompts     equal texts have equal ids; four characters count as a token, since there is no tokenizer
    otherwise   an id of its own: nothing is shared
"""

from itertools import count

from loadtest.workload.plan import Planned

_CHARACTERS_PER_TOKEN = 4
_OWN = 1 << 31  # ids are unsigned 32-bit words: block ids lie below, all others from here on


class Content:
    """Gives ids to one trace's requests, in the order of their arrival."""

    def __init__(self) -> None:
        self._next = count(_OWN)
        self._named: dict[tuple[str, str], int] = {}

    def prompt(self, request: Planned) -> tuple[list[int], int]:
        """The prompt's ids, and the id of every token of its answer. Raises ValueError for a block id out of range."""
        own, length = next(self._next), length_of(request)
        if request.prompt is not None:
            return [self._of("prompt", request.prompt)] * length, own
        if request.blocks:
            return _blocks(request), own
        if request.session is not None:
            return [self._of("session", request.session)] * length, own
        return [own] * length, own

    def _of(self, kind: str, name: str) -> int:
        if (kind, name) not in self._named:
            self._named[kind, name] = next(self._next)
        return self._named[kind, name]


def length_of(request: Planned) -> int:
    """Tokens of the prompt."""
    if request.prompt is None or request.prompt_tokens:
        return request.prompt_tokens
    return max(1, len(request.prompt) // _CHARACTERS_PER_TOKEN)


def _blocks(request: Planned) -> list[int]:
    ids: list[int] = []
    for block in request.blocks:
        if not 0 <= block < _OWN:
            raise ValueError(f"line {request.line}: block id {block} is not below {_OWN}")
        ids += [block] * min(request.block_tokens, request.prompt_tokens - len(ids))
    return ids
