"""All sequences of a job are submitted, or none stays behind; and what an output's end means."""

import pytest

from scheduler.types.messages import AddRequest, FinishReason, Output
from scheduler.types.sampling_params import SamplingParams
from server.errors import GenerationFailed, QueueFull, Unavailable
from server.stream.job import Job, SequenceRequest, TokenizedPrompt
from server.stream.submission import Submission, raise_failure
from server.telemetry.lifetime import Exchange
from tests.server.api.scripted import Server


def job(sequences: int, prefix: str = "j") -> Job:
    prompts = [TokenizedPrompt([1] * (i + 1), None, f"prompt[{i}]") for i in range(sequences)]
    requests = [
        AddRequest(request_id=f"{prefix}-{i}", prompt_ids=prompt.ids, sampling=SamplingParams(max_tokens=1))
        for i, prompt in enumerate(prompts)
    ]
    pairs = zip(prompts, requests, strict=True)
    return Job(id=prefix, created=0, model="m", sequences=[SequenceRequest(i, *pair) for i, pair in enumerate(pairs)])


class Recording:
    """The scripted engine's end of the wire: nothing is ever answered."""

    pid, started = 1, 0.0

    def __init__(self, refuse_at: int | None = None):
        self.sent, self.refuse_at = [], refuse_at

    def listen(self, name, on_event, on_broken):
        """There are no events."""

    def once_connected(self, action):
        action()

    def remove_endpoints(self):
        """There are none."""

    def send(self, command):
        if isinstance(command, AddRequest) and len(self.sent) == self.refuse_at:
            raise QueueFull("no more")
        self.sent.append(command)


def engine(process, **settings):
    server = Server(**settings)
    server.replace(process)
    return server.engine


def exchange() -> Exchange:
    return Exchange(request_id="x", received=0.0)


def test_every_sequence_has_a_stream_and_a_lifetime():
    process, noted = Recording(), exchange()
    client = engine(process)
    submission = Submission(job(3), client, noted)
    assert [command.request_id for command in process.sent] == ["j-0", "j-1", "j-2"]
    assert submission.lifetimes == noted.lifetimes
    assert [lifetime.prompt_tokens for lifetime in submission.lifetimes] == [1, 2, 3]
    assert client.open_count == 3
    submission.close()
    submission.close()
    assert client.open_count == 0
    assert [command.request_ids for command in process.sent[3:]] == [["j-0"], ["j-1"], ["j-2"]]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_sequence_that_cannot_be_sent_takes_back_those_before_it(at):
    process = Recording(refuse_at=at)
    client = engine(process)
    with pytest.raises(QueueFull):
        Submission(job(3), client, exchange())
    assert client.open_count == 0
    assert [command.request_ids for command in process.sent[at:]] == [[f"j-{i}"] for i in range(at)]


def test_a_full_queue_refuses_before_anything_is_sent():
    process = Recording()
    client = engine(process, max_waiting=2)
    first = Submission(job(2), client, exchange())
    noted = exchange()
    with pytest.raises(QueueFull, match="2 sequences wait, max_waiting is 2 and this request needs 1"):
        Submission(job(1, "k"), client, noted)
    assert len(process.sent) == 2 and noted.lifetimes == []
    first.close()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_job_of_more_sequences_than_the_queue_holds_enters_an_empty_one_whole(limit):
    process = Recording()
    client = engine(process, max_waiting=limit)
    submission = Submission(job(5), client, exchange())
    assert client.open_count == len(process.sent) == 5
    with pytest.raises(QueueFull, match=f"5 sequences wait, max_waiting is {limit} and this request needs 5"):
        Submission(job(5, "k"), client, exchange())
    assert client.open_count == len(process.sent) == 5
    submission.close()


def test_an_engine_that_is_not_ready_refuses():
    client = Server(ready=False).engine
    with pytest.raises(Unavailable, match="starting") as caught:
        Submission(job(1), client, exchange())
    assert int(caught.value.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("reason", [None, FinishReason.STOP, FinishReason.LENGTH])
def test_an_ordinary_output_is_no_failure(reason):
    raise_failure(Output(request_id="r", finish_reason=reason))


@pytest.mark.parametrize(
    ("reason", "kind", "error", "said"),
    [
        (FinishReason.ERROR, GenerationFailed, "NaN in the logits", "NaN in the logits"),
        (FinishReason.ERROR, GenerationFailed, None, "no cause given"),
        (FinishReason.ABORT, Unavailable, "shutting down", "shutting down"),
        (FinishReason.ABORT, Unavailable, None, "the server ended it"),
    ],
)
def test_a_failure_names_its_cause(reason, kind, error, said):
    with pytest.raises(kind, match=said) as caught:
        raise_failure(Output(request_id="r", finish_reason=reason, error=error))
    assert ("Retry-After" in caught.value.headers) == (kind is Unavailable)
