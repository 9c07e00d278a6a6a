"""Token ids for a trace's prompts: meaningless, but equal exactly where the trace says that the text is equal.

A stretch of equal text is one id, repeated: blocks differ by their position and what precedes them.

    blocks      each part is its block id, repeated; equal leading parts are a shared prefix
    sessions    all prompts of a session repeat one id, so that they extend one another; answers are not part of them, because
                a client that plans its prompts cannot know them
    prompts     equal texts have equal ids; four characters count as a token, since there is no tokenizer
    otherwise   an id of its own: nothing is shared

So the names of KV blocks need no hash of each block: a name says which stretch of equal ids the block ends in, by its id or, of a
trace with blocks, by a hash of all stretches so far; and the block's place. Names are equal where those of
`scheduler.types.block_hash` are.
"""

from dataclasses import dataclass
from hashlib import blake2b
from itertools import count, groupby

from loadtest.workload.plan import Planned

_CHARACTERS_PER_TOKEN = 4
_OWN = 1 << 31  # ids are unsigned 32-bit words: block ids lie below, all others from here on
_HALF = 8  # bytes of a name that say which stretch; as many say the place


@dataclass(frozen=True, slots=True)
class SimulatedText:
    """A prompt and its answer.

    Attributes:
        prompt: its ids.
        token: each id of the answer.
        names: of all blocks that the two fill.
        prompt_names: of these, those that the prompt fills.
    """

    prompt: list[int]
    token: int
    names: list[bytes]
    prompt_names: list[bytes]


class Content:
    """Gives ids and names to one trace's requests, in the order of their arrival.

    Args:
        block_size: tokens in a block of KV.
    """

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._next = count(_OWN)
        self._named: dict[tuple[str, str], int] = {}
        self._places: list[bytes] = []

    def text(self, request: Planned, *, named: bool = True) -> SimulatedText:
        """The ids of a request's prompt and answer, and names unless nobody asks for them. Raises ValueError for a block id out of
        range."""
        own = next(self._next)
        if not named:
            return SimulatedText([self._token(request, own)] * length_of(request), own, [], [])
        if request.prompt is None and request.blocks:
            prompt, leading = _ids(request), self._runs(request)
        else:
            token, length = self._token(request, own), length_of(request)
            prompt, leading = [token] * length, self._run(_name(token), 0, length // self._size)
        filled = (len(prompt) + request.output_tokens) // self._size
        return SimulatedText(prompt, own, leading + self._run(_name(own), len(leading), filled), leading)

    def _token(self, request: Planned, own: int) -> int:
        """The id of every token of a prompt without blocks."""
        if request.prompt is not None:
            return self._of("prompt", request.prompt)
        return own if request.session is None else self._of("session", request.session)

    def _of(self, kind: str, name: str) -> int:
        if (kind, name) not in self._named:
            self._named[kind, name] = next(self._next)
        return self._named[kind, name]

    def _run(self, text: bytes, begin: int, end: int) -> list[bytes]:
        """Names of the blocks `[begin, end)`, whose last tokens are of one stretch of equal ids."""
        places = self._places
        places += (place.to_bytes(_HALF, "little") for place in range(len(places), end))
        return [text + place for place in places[begin:end]]

    def _runs(self, request: Planned) -> list[bytes]:
        """Names of the full blocks of a prompt of parts: each by the stretch of equal ids in which it ends, and those before."""
        names: list[bytes] = []
        before, end = b"", 0
        for block, same in groupby(request.blocks):
            text = blake2b(before + block.to_bytes(_HALF, "little"), digest_size=_HALF).digest()
            end = min(end + len(list(same)) * request.block_tokens, request.prompt_tokens)
            names += self._run(text, len(names), end // self._size)
            before = text + end.to_bytes(_HALF, "little")
        return names


def length_of(request: Planned) -> int:
    """Tokens of the prompt."""
    if request.prompt is None or request.prompt_tokens:
        return request.prompt_tokens
    return max(1, len(request.prompt) // _CHARACTERS_PER_TOKEN)


def _name(token: int) -> bytes:
    return token.to_bytes(_HALF, "little")


def _ids(request: Planned) -> list[int]:
    ids: list[int] = []
    for block in request.blocks:
        if not 0 <= block < _OWN:
            raise ValueError(f"line {request.line}: block id {block} is not below {_OWN}")
        ids += [block] * min(request.block_tokens, request.prompt_tokens - len(ids))
    return ids
