"""`python -m server.structured.compile_process`: compiles grammars for the server, away from it.

A schema or regular expression may make llguidance compute and allocate without end, and nothing interrupts it. So each is compiled
in a fork of this process, which has the model's tokens ready, with bounds on its CPU time and its memory that the system enforces.
It then walks the grammar for some tokens and measures how long each takes, because the engine will pay for that.

Frames on stdin and stdout, each a length of four bytes and msgpack. It ends when stdin does.
"""

import gc
import os
import random
import re
import resource
import selectors
import signal
import struct
import sys
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from engine.ipc.vocabulary import TokenSpellings, matcher_of
from server.structured.grammar import ANY_OBJECT, Grammar, lark_term, whole_regex

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MEMORY_BYTES = 512 * 2**20  # more than the process has to begin with
AT_ONCE = 2  # forks
_REHEARSED_TOKENS = 48
_NICE = 10  # beside an engine that has every core busy, a fork gets a tenth of one
_LOOKS_SECONDS = 1.0  # between two looks at what has become late
_MOST_SAID = 4000  # characters of a refusal, which may quote the grammar
_SLOW_SECONDS = 0.05  # for one token; some 0.05 ms are usual
_NOTHING_FITS = "no text fits it"
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)

HEAD = struct.Struct("<I")


class Setup(msgspec.Struct):
    """The first frame: the model, and where its vocabulary is to be written."""

    model: str
    vocab_size: int
    eos_token_ids: list[int]
    vocabulary: str
    cpu_seconds: int  # of one grammar


class Task(msgspec.Struct):
    """A grammar to compile."""

    number: int
    kind: str
    source: str
    owner: str  # on whose account: all of them take turns
    until: float  # by the monotonic clock; nobody waits for it any longer


class CompileOutcome(msgspec.Struct):
    """What became of the task of this number, or, with number -1, of the setup."""

    number: int
    grammar: str = ""  # as llguidance serializes it
    refused: str = ""  # why it cannot be
    late: bool = False  # it was not done when nobody waited any longer


def main() -> NoReturn:
    """Set up, then compile until stdin ends."""
    setup = msgspec.msgpack.decode(_read(sys.stdin.fileno()) or b"", type=Setup)
    try:
        tokenizer = _prepare(setup)
    except Exception as error:  # the tokenizer was read by the server, so this is memory, or the disk
        _write(CompileOutcome(number=-1, refused=f"{type(error).__name__}: {error}"))
        os._exit(1)
    _write(CompileOutcome(number=-1))
    gc.freeze()
    Forks(tokenizer, setup.cpu_seconds).run()
    os._exit(0)


def _prepare(setup: Setup) -> "LLTokenizer":
    """Write the vocabulary for the engines, and make what grammars are compiled with."""
    from server.text import load_tokenizer

    tokenizer = load_tokenizer(Path(setup.model))
    vocabulary = TokenSpellings(
        tokens=[tokenizer.token_bytes(token) for token in range(setup.vocab_size)],
        special_ids=sorted(token for token in tokenizer.special_ids if token < setup.vocab_size),
        added_ids=sorted(
            token for token in tokenizer.added_tokens if token < setup.vocab_size and token not in tokenizer.special_ids
        ),
    )
    vocabulary.write(Path(setup.vocabulary))
    return vocabulary.tokenizer(setup.vocab_size, setup.eos_token_ids)


class TaskQueue:
    """Tasks that wait. Those of one owner go in their order, and owners take turns."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, deque[Task]] = OrderedDict()  # the one whose turn is next at the front

    def __bool__(self) -> bool:
        return bool(self._by_owner)

    def add(self, task: Task) -> None:
        """Another one."""
        self._by_owner.setdefault(task.owner, deque()).append(task)

    def take(self) -> Task:
        """The next one."""
        owner, tasks = self._by_owner.popitem(last=False)
        task = tasks.popleft()
        if tasks:
            self._by_owner[owner] = tasks  # behind everybody else
        return task

    def take_late(self, now: float) -> list[Task]:
        """Those that nobody waits for any longer."""
        late: list[Task] = []
        for owner, tasks in list(self._by_owner.items()):
            while tasks and tasks[0].until <= now:
                late.append(tasks.popleft())
            if not tasks:
                del self._by_owner[owner]
        return late


class Forks:
    """The forks that compile, and the tasks that wait for one."""

    def __init__(self, tokenizer: "LLTokenizer", cpu_seconds: int) -> None:
        self._tokenizer, self._cpu_seconds = tokenizer, cpu_seconds
        self._selector = selectors.DefaultSelector()
        self._waiting = TaskQueue()
        self._running: dict[int, tuple[Task, int, bytearray]] = {}  # by the descriptor that is read
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)

    def run(self) -> None:
        """Until stdin ends; what still runs is killed then."""
        while True:
            for key, _ in self._selector.select(_LOOKS_SECONDS if self._running else None):
                if key.fd != sys.stdin.fileno():
                    self._read_from(key.fd)
                elif (frame := _read(key.fd)) is None:
                    return self._kill()
                else:
                    self._waiting.add(msgspec.msgpack.decode(frame, type=Task))
            self._end_late(time.monotonic())
            while self._waiting and len(self._running) < AT_ONCE:
                self._start(self._waiting.take())

    def _end_late(self, now: float) -> None:
        for task in self._waiting.take_late(now):
            _write(CompileOutcome(number=task.number, late=True))
        for task, pid, _ in self._running.values():
            if task.until <= now:
                os.kill(pid, signal.SIGKILL)

    def _start(self, task: Task) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            _compile_in_fork(self._tokenizer, task, writer, self._cpu_seconds)
        os.close(writer)
        self._running[reader] = task, pid, bytearray()
        self._selector.register(reader, selectors.EVENT_READ)

    def _read_from(self, reader: int) -> None:
        task, pid, said = self._running[reader]
        part = os.read(reader, 2**16)
        said += part
        if part:
            return
        self._selector.unregister(reader)
        os.close(reader)
        del self._running[reader]
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) and task.until <= time.monotonic():
            _write(CompileOutcome(number=task.number, late=True))
        elif os.WIFSIGNALED(status) or not said:
            killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            _write(CompileOutcome(number=task.number, refused=self._why(killed)))
        else:
            _write_bytes(bytes(said))

    def _why(self, killed: int) -> str:
        """What a fork has exceeded that left without a word, or by a signal."""
        if killed == signal.SIGSEGV:
            return "it is nested deeper than can be compiled"
        limit = f"{MEMORY_BYTES // 2**20} MiB of memory"
        if killed == signal.SIGXCPU:
            limit = f"{self._cpu_seconds} s of CPU time"
        return f"it takes more than {limit} to compile"

    def _kill(self) -> None:
        for _, pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)


def _compile_in_fork(tokenizer: "LLTokenizer", task: Task, writer: int, cpu_seconds: int) -> NoReturn:
    """Compile with what a grammar may cost, say what came of it, and end. Nothing that this process holds is cleaned up."""
    try:
        os.nice(_NICE)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + cpu_seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        with open("/proc/self/statm", encoding="ascii") as pages:
            most = int(pages.read().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what Rust says when it runs out of memory
        outcome = compile_grammar(tokenizer, task)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(msgspec.msgpack.encode(outcome))
    finally:
        os._exit(0)


def compile_grammar(tokenizer: "LLTokenizer", task: Task) -> CompileOutcome:
    """The grammar, or why there is none."""
    try:
        text = serialized(task.kind, task.source)
    except ValueError as error:
        return CompileOutcome(number=task.number, refused=str(error)[:_MOST_SAID])
    matcher = matcher_of(tokenizer, text)
    refused = said_by(matcher) if matcher.is_error() else rehearse(matcher)
    return (
        CompileOutcome(number=task.number, refused=refused.strip()[:_MOST_SAID])
        if refused
        else CompileOutcome(number=task.number, grammar=text)
    )


def serialized(kind: str, source: str) -> str:
    """The grammar as llguidance serializes it.

    Raises:
        ValueError: it is none; so far only what is found without compiling it.
    """
    from llguidance import LLMatcher

    match kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(source)
        case "json_object":
            return LLMatcher.grammar_from_json_schema(ANY_OBJECT)
        case "regex":
            return LLMatcher.grammar_from_regex(whole_regex(source))
        case "choice":
            return LLMatcher.grammar_from_lark("start: " + lark_term(Grammar("choice", source, "")))
    return LLMatcher.grammar_from_lark(_lark_of_gbnf(source) if _GBNF_RULE.search(source) else source)


def _lark_of_gbnf(source: str) -> str:
    """llama.cpp's notation (grammars/README.md there) in Lark.

    Raises:
        ValueError: it has something that Lark has not.
    """
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(source)
    except Exception as error:  # the converter raises what it likes
        raise ValueError(f"the GBNF cannot be converted: {error}") from None


def said_by(matcher: "LLMatcher") -> str:
    """Why a grammar cannot be walked, in words."""
    said = matcher.get_error().replace("<non-verbose/>", "").strip()
    return _NOTHING_FITS if said == "NoExtensionBias" else said


def rehearse(matcher: "LLMatcher") -> str:
    """Walk the grammar at random. Returns why an engine should not; empty if it may."""
    draw = random.Random(0)
    for _ in range(_REHEARSED_TOKENS):
        began = time.thread_time()
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        forced = matcher.compute_ff_tokens()
        if matcher.is_error():
            return said_by(matcher)
        seconds = time.thread_time() - began
        if seconds > _SLOW_SECONDS:
            return f"one of its tokens takes {seconds * 1000:.0f} ms to find; at most {_SLOW_SECONDS * 1000:.0f} ms are allowed"
        if not mask:
            return _NOTHING_FITS
        token = forced[0] if forced else _any_bit(mask, draw)
        if matcher.is_stopped() or not matcher.consume_token(token):
            break
    return ""


def _any_bit(mask: int, draw: random.Random) -> int:
    """One of the mask's set bits: the first at or after a place drawn, or else the first of all."""
    place = draw.randrange(mask.bit_length())
    later = mask >> place
    return place + (later & -later).bit_length() - 1


def _read(descriptor: int) -> bytes | None:
    """The next frame; None at the end."""
    head = _exactly(descriptor, HEAD.size)
    return None if head is None else _exactly(descriptor, HEAD.unpack(head)[0])


def _exactly(descriptor: int, size: int) -> bytes | None:
    read = bytearray()
    while len(read) < size:
        part = os.read(descriptor, size - len(read))
        if not part:
            return None
        read += part
    return bytes(read)


def _write(outcome: CompileOutcome) -> None:
    _write_bytes(msgspec.msgpack.encode(outcome))


def _write_bytes(frame: bytes) -> None:
    sys.stdout.buffer.write(HEAD.pack(len(frame)) + frame)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
