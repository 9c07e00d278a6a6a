"""A valid request as the engine will see it: its sequences, and the kind of result that they produce.

Each kind of result has a job and an answer path of its own: text is a `TextJob` answered by `server/stream/generation.py`,
a vector or scores are a plain `Job` answered by `server/stream/pooled.py`.
"""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from scheduler.router.deadlines import Deadline, Promise
from scheduler.types.messages import AddRequest
from server.schema.sampling import Sampling
from server.structured.grammar import Grammar
from server.text.message_parser import MessageForm

S = TypeVar("S", bound=Sampling)


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """What a sequence starts from. `text` is the client's own, None if it sent ids; `param` is the field's path."""

    ids: list[int]
    text: str | None
    param: str


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence of a job: one choice of a text answer, or one result."""

    index: int
    prompt: TokenizedPrompt
    request: AddRequest


@dataclass(slots=True, kw_only=True)
class Job:
    """A valid request: nothing about it can be refused any more, except for lack of room in the queue.

    Attributes:
        id: the answer's; the engine's id of a sequence is this, a hyphen and the sequence's index.
        created: Unix seconds.
        model: the name that the answer carries.
        sequences: in the order of the answer.
        deadline: by when it needs what it asked for.
        promise: that this will be kept, once an engine was chosen.
    """

    id: str
    created: int
    model: str
    sequences: list[SequenceRequest]
    deadline: Deadline | None = None
    promise: Promise | None = None


@dataclass(slots=True, kw_only=True)
class TextJob(Job, Generic[S]):
    """A job whose sequences produce text.

    Choices of one prompt are adjacent: choice `j` of prompt `i` is sequence `i * body.candidates + j`. `continues`: the text
    continues the prompt's, so a space at its beginning is kept. `form`: how the text is read as a message; None: it is text and
    nothing else. `grammar`: what each text has to fit, compiled before any is submitted.
    """

    body: S
    continues: bool
    form: MessageForm | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class TranslatedJob:
    """A request of another API: the job that computes what it asks for. What its answer needs besides stands in a subclass."""

    job: TextJob[Any]
