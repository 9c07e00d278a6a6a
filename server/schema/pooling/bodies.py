"""The bodies and answers of endpoints whose results are vectors and scores: `/v1/embeddings`, `/v1/rerank`, `/v1/score`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from configs.settings import Settings
from server.schema.answers import AnswerBody
from server.schema.base import INT32_MAX, Body, either, where, wrong
from server.schema.fields import MAX_STRING, ModelName, Prompt
from server.schema.shown import shown

Side = Literal["NONE", "START", "END"]


def check_texts(value: Any) -> list[str]:
    """A string or an array of strings, at least one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise wrong(f"must be a string or an array of strings, got {shown(value)}")
    return _strings(texts)


def check_documents(value: Any) -> list[str]:
    """An array of strings, or of objects with a `text` each, at least one."""
    if not isinstance(value, list):
        raise wrong(f"must be an array of strings, got {shown(value)}")
    return _strings([item.get("text") if isinstance(item, dict) and set(item) == {"text"} else item for item in value])


def _strings(texts: list[Any]) -> list[str]:
    if not texts:
        raise wrong("must hold at least one text, got an empty array")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong(f"must be a string, got {shown(text)}", f"[{i}]")
    return texts


def check_truncate(value: Any) -> Side:
    """True or false, or the side that is cut off: `END`, `START` or `NONE`."""
    if isinstance(value, bool):
        return "END" if value else "NONE"
    if value in ("NONE", "START", "END"):
        side: Side = value
        return side
    raise wrong(f'must be true, false, "END", "START" or "NONE", got {shown(value)}')


_STRING = {"type": "string", "x-bound": "beginning"}
_STRINGS = {"type": "array", "items": _STRING, "minItems": 1}
_DOCUMENT = {
    "anyOf": [
        _STRING,
        {"type": "object", "properties": {"text": _STRING}, "required": ["text"], "additionalProperties": False},
    ]
}
Texts = Annotated[list[str], PlainValidator(check_texts), WithJsonSchema({"anyOf": [_STRING, _STRINGS]})]
Documents = Annotated[
    list[str], PlainValidator(check_documents), WithJsonSchema({"type": "array", "items": _DOCUMENT, "minItems": 1})
]
Truncate = Annotated[
    Side, PlainValidator(check_truncate), WithJsonSchema({"enum": [True, False, "NONE", "START", "END"]})
]

TokenCount = Annotated[
    int,
    Field(ge=-1, le=INT32_MAX),
    WithJsonSchema(
        {"anyOf": [{"const": -1}, {"type": "integer", "minimum": 1, "maximum": INT32_MAX, "x-bound": "tokens"}]}
    ),
]
InputType = Annotated[str, Field(max_length=MAX_STRING, json_schema_extra={"x-bound": "input types"})]
PromptName = Annotated[str, Field(max_length=MAX_STRING, json_schema_extra={"x-bound": "prompts"})]
Dimensions = Annotated[int, Field(ge=1, le=INT32_MAX, json_schema_extra={"x-bound": "dimensions"})]
Query = Annotated[str, Field(json_schema_extra={"x-bound": "beginning"})]


class PooledBody(Body):
    """What they have in common."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"metadata", "service_tier", "safety_identifier"})

    model: ModelName | None = Field(None, description="One of the served names; the served model if absent.")
    user: str = Field("", max_length=512, description="On whose behalf the request is made, as for completions.")
    priority: int = Field(
        0, ge=-(2**31), le=INT32_MAX, description="Extension: lower numbers run first, as for completions."
    )
    truncate: Truncate = Field(
        "NONE",
        description="Extension: cut texts that are too long: true or `END` cuts off the end, `START` the beginning; of a pair the "
        "longer text is cut first. `NONE`: they are refused.",
    )
    truncate_prompt_tokens: TokenCount | None = Field(
        None,
        description="Extension: cut texts to so many tokens, special ones included; -1: to as many as the model takes.",
    )

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """Without priorities, none can be asked for."""
        return [where("priority", 0, None)] if settings.scheduling == "fcfs" else []


class EmbeddingRequest(PooledBody):
    """Texts or token ids in, a vector of each out."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "chat_template": (),
        "continue_final_message": (False,),
        "embed_dtype": ("float32",),
        "messages": (),
        "mm_processor_kwargs": ({},),
        "normalize": (),
        "output_dtype": ("float",),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = {"prompt": "POST /v1/completions", "documents": "POST /v1/rerank"}

    input: Prompt = Field(description="A string, strings, token ids, or arrays of token ids.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64`: 32-bit floats, the lowest byte first, in base64."
    )
    dimensions: Dimensions | None = Field(
        None, description="The first so many numbers of each vector, at length 1 again (Matryoshka)."
    )
    input_type: InputType | None = Field(
        None,
        description="Extension: what the texts are, as in `query` and `document`: what the model puts before such texts is put "
        "before them. A model that does not tell queries from documents puts nothing.",
    )
    prompt_name: PromptName | None = Field(
        None, description="Extension: the name of what is put before texts, as the model's own configuration has it."
    )
    add_special_tokens: bool = Field(
        True, description="Extension: put around a text what the model's tokenizer does, such as `[CLS]` and `[SEP]`."
    )

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """Two names of one thing."""
        return [*super().rules(settings), either(where("input_type", None), where("prompt_name", None))]


class RerankRequest(PooledBody):
    """A query and documents in, the documents' order out; as Jina and Cohere have it."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "max_chunks_per_doc": (),
        "max_tokens_per_doc": (),
        "overlap_tokens": (),
        "rank_fields": (["text"],),
        "return_embeddings": (False,),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = {"input": "POST /v1/embeddings", "text_1": "POST /v1/score"}

    query: Query = Field(description="What is looked for.")
    documents: Documents = Field(description="Texts, or objects with a `text`.")
    top_n: int | None = Field(None, ge=1, le=INT32_MAX, description="Only the best so many; all if absent.")
    return_documents: bool = Field(True, description="Whether the answer holds the texts.")


class ScoreRequest(PooledBody):
    """Pairs of texts in, a score of each out; as vLLM has it."""

    ELSEWHERE: ClassVar[dict[str, str]] = {"query": "POST /v1/rerank", "documents": "POST /v1/rerank"}

    text_1: Texts = Field(description="One text, or as many as `text_2` has.")
    text_2: Texts = Field(description="What it is compared with.")


# A schema cannot say that two arrays have equal lengths: `text_1` and `text_2` are checked where the job is made.


class PooledUsage(AnswerBody):
    """Token counts of the request."""

    prompt_tokens: int
    total_tokens: int


class PooledAnswer(AnswerBody):
    """What the answers have in common."""

    id: str
    created: int = Field(description="Unix seconds.")
    model: str
    usage: PooledUsage


class EmbeddingItem(AnswerBody):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64.")


class EmbeddingAnswer(PooledAnswer):
    """The answer of `/v1/embeddings`."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]


class RankedText(AnswerBody):
    """A document as it was sent."""

    text: str


class Ranked(AnswerBody):
    """One document's place in the order."""

    index: int = Field(description="Of the document in the request.")
    relevance_score: float
    document: RankedText | None = Field(None, description="With `return_documents`.")


class RerankAnswer(PooledAnswer):
    """The answer of `/v1/rerank`, the best first."""

    results: list[Ranked]


class Score(AnswerBody):
    """The score of one pair."""

    object: Literal["score"] = "score"
    index: int
    score: float


class ScoreAnswer(PooledAnswer):
    """The answer of `/v1/score`."""

    object: Literal["list"] = "list"
    data: list[Score]
