"""From the engine's outputs to vectors or scores: one result for each sequence of a job, complete when the sequence ends."""

from scheduler.types.output_kind import OutputKind, Pooled
from server.errors import GenerationFailed
from server.stream.submission import SequenceStream, Submission, raise_failure


async def pooled(submission: Submission) -> list[Pooled]:
    """What each sequence produced, in the job's order. All run at once; whoever submitted them closes them.

    Raises:
        GenerationFailed: the engine failed on one of them, or ended it without a result of the kind that was asked for.
        EngineDied, PoisonRequest, Unavailable: the engine died and none went on, or the server ended one of them.
    """
    kinds = [sequence.request.produces for sequence in submission.job.sequences]
    return [await _result(stream, kind) for stream, kind in zip(submission.streams, kinds, strict=True)]


async def _result(stream: SequenceStream, kind: OutputKind) -> Pooled:
    result = None
    async for output in stream:
        raise_failure(output)
        result = output.pooled or result
    if result is None or result.kind is not kind:
        got = "nothing" if result is None else f"{result.kind}"
        raise GenerationFailed(f"The engine was asked for {kind} and produced {got}.")
    return result
