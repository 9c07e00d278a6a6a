"""`headrace chat`: a conversation with a running server, in a terminal or through a pipe."""

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from server.client.answers import ToldEvent
from server.client.api import URL, Api, AskError, add_arguments, key_of, printable
from server.client.conversation import Conversation

HELP = """/system TEXT  tell the model this before all else; without TEXT: nothing
/reset        forget what was said
/help         this
/quit         leave; so does Ctrl-D
Ctrl-C ends an answer. A line that ends in \\ goes on in the next one."""
_HISTORY_LINES = 1000


def chat(arguments: Sequence[str]) -> int:
    """Chat with a running server.

    Returns:
        0; 1 if the server cannot be reached or, through a pipe, refuses; 2 for wrong usage; 130 after Ctrl-C in a pipe.
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends an answer
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        key = key_of(options.api_key, os.environ)
        api = Api(options.url, key=key, uds=options.uds, ca_file=options.ca_file)
        model = options.model or api.models()[0]
    except AskError as error:
        print(f"headrace chat: {error}", file=sys.stderr)
        return 1
    except IndexError:
        print("headrace chat: the server serves no model.", file=sys.stderr)
        return 1
    asked = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    talk = Talk(api, model, Conversation(options.system), {name: v for name, v in asked.items() if v is not None})
    with contextlib.closing(api):
        return talk.through_a_pipe() if not sys.stdin.isatty() else talk.in_a_terminal()


class Talk:
    """One conversation.

    Args:
        api: the server.
        model: which of its models.
        conversation: what was said.
        sampling: further fields of each request.
    """

    def __init__(self, api: Api, model: str, conversation: Conversation, sampling: dict[str, Any]) -> None:
        self._api = api
        self._model = model
        self._conversation = conversation
        self._sampling = sampling
        self._terminal = sys.stdout.isatty()

    def through_a_pipe(self) -> int:
        """All that stdin has is one message; its answer goes to stdout."""
        text = sys.stdin.read().strip()
        if not text:
            print("headrace chat: there is nothing on stdin to ask.", file=sys.stderr)
            return 2
        try:
            self._answer(text)
        except AskError as error:
            print(f"\nheadrace chat: {error}", file=sys.stderr)
            return 1
        return 0

    def in_a_terminal(self) -> int:
        """Lines of a person, until they leave."""
        print(f"{printable(self._model)} at {self._api.url}. /help lists what else can be typed.")
        with _history():
            while True:
                try:
                    line = _read()
                    if line == "/quit":
                        return 0
                    self._take(line)
                except KeyboardInterrupt:
                    print("\n/quit or Ctrl-D leaves.")
                except EOFError:
                    print()
                    return 0

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], str]] = {"/system": self._system, "/reset": self._reset, "/help": _help}
        if command in commands:
            print(commands[command](rest.strip()))
        elif command.startswith("/"):
            print(f"There is no {command}. A message that begins with a slash has to begin with a space.")
        elif line.strip():
            try:
                self._answer(line.strip())
            except AskError as error:
                print(error)

    def _system(self, text: str) -> str:
        self._conversation.system = text
        return f"The model is told: {text}" if text else "The model is told nothing before all else."

    def _reset(self, rest: str) -> str:
        self._conversation.reset()
        return "What was said is forgotten."

    def _answer(self, text: str) -> None:
        """Ask, and print the answer as it comes. Ctrl-C ends it; what was there of it counts as said.

        Raises:
            AskError: there is none.
        """
        self._conversation.ask(text)
        parts: list[str] = []
        last = ToldEvent()
        body = {
            "model": self._model,
            "messages": self._conversation.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling,
        }
        try:
            with contextlib.closing(self._api.events("/v1/chat/completions", body)) as events:
                for last in events:
                    parts.append(last.text)
                    sys.stdout.write(printable(last.text) if self._terminal else last.text)
                    sys.stdout.flush()
            print()
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print(" [stopped]")
        finally:
            self._conversation.answered("".join(parts))
        if self._terminal and (said := _figures(last)):
            print(f"\033[2m{said}\033[0m")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace chat",
        description="Chat with a running server. Through a pipe, all of stdin is one message, and the answer goes to stdout.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", nargs="?", default=URL, help=f"the server, headrace or another [{URL}]")
    parser.add_argument("--model", metavar="NAME", help="which of its models [the first]")
    parser.add_argument("--system", metavar="TEXT", default="", help="what the model is told before all else")
    parser.add_argument("--temperature", metavar="X", type=float, help="0: the likeliest token each time")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="most tokens of an answer")
    add_arguments(parser)
    return parser


def _read() -> str:
    """A message: a line, and the next ones as long as they end in a backslash."""
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(". "))
    return "\n".join(lines)


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines can be edited and found again, where Python has readline; also those of earlier chats, where a home keeps them."""
    try:
        import readline
    except ModuleNotFoundError:
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(state, "headrace", "chat_history")
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(file)
            file.chmod(0o600)


def _help(rest: str) -> str:
    return HELP


def _figures(event: ToldEvent) -> str:
    """What the last event says of the answer's cost."""
    usage = event.usage
    if usage is None:
        return ""
    cached = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
    said = [f"{usage.prompt_tokens} tokens in ({cached} cached), {usage.completion_tokens} out"]
    if event.timings and event.timings.decode_tokens_per_second:
        said.append(f"{event.timings.decode_tokens_per_second:.0f} tok/s")
    return ", ".join(said)
