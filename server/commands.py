"""The `headrace` command: subcommands, each of which gets its own arguments and returns an exit code.

The server's own are in a table here. Any distribution can add others by entry points of the group `headrace.commands`: the
name is the command's, the object is `run(arguments) -> exit code`, and the first line of its docstring is the summary.
Nothing heavy is imported before it is known to be needed: `headrace --help` answers at once, and `serve` starts the engine
process, the slow part of a start, before it imports the HTTP stack.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

EXIT_USAGE = 2  # what argparse and most shells use for wrong usage
PLUGINS = "headrace.commands"


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand. `run` gets the arguments after its name and returns the exit code; `summary` is one line."""

    summary: str
    run: Callable[[Sequence[str]], int]


def run_command(arguments: Sequence[str]) -> int:
    """Run one subcommand and return its exit code; 2 if the command line is wrong."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        print(f"headrace {version('headrace')}")
        return 0
    command = COMMANDS.get(name) or plugins().get(name)  # the table first: looking for plugins takes time
    if command is None:
        return _complain("headrace", f"unknown command {name!r}.\n{_overview()}")
    return command.run(arguments[1:])


def plugins() -> dict[str, Command]:
    """The commands of installed distributions, by name. They cannot replace the server's own."""
    return {entry.name: plugin(entry) for entry in entry_points(group=PLUGINS) if entry.name not in COMMANDS}


def plugin(entry: EntryPoint) -> Command:
    """The command behind an entry point; if a module is missing, one that says which and how to get it."""

    def run(arguments: Sequence[str]) -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have something to say when it is interrupted
        try:
            code: int = entry.load()(arguments)
        except ModuleNotFoundError as error:
            return _complain(f"headrace {entry.name}", f"{error.name} is missing: pip install '{_requirement(entry)}'")
        return code

    try:
        described = (entry.load().__doc__ or "").strip().partition("\n")[0].rstrip(".")
    except ModuleNotFoundError as error:
        described = f"{error.name} is missing: pip install '{_requirement(entry)}'"
    return Command(described, run)


def serve(arguments: Sequence[str]) -> int:
    """`headrace serve`: settings, then the model's headers, then the server until it is told to stop."""
    from configs.loader import ConfigError, load, render

    parser = serve_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        return _complain(parser.prog, _unknown_argument(unknown, parser))
    flags: dict[str, Any] = vars(options)
    print_config, files = flags.pop("print_config", False), flags.pop("config", None)
    try:
        loaded = load(flags, os.environ, files)
    except ConfigError as error:
        return _complain(parser.prog, str(error))
    if print_config:
        print(render(loaded))
        return 0
    from configs.model.source import ModelError, resolve_model

    try:
        source = resolve_model(loaded.settings.model)
    except ModelError as error:
        return _complain(parser.prog, str(error))
    from server.run import run

    return run(loaded.settings, source)


def doctor(arguments: Sequence[str]) -> int:
    """`headrace doctor`: what is installed, and what is lost without the rest; with --url, whether a running server serves."""
    from server.client.api import add_arguments
    from server.telemetry.doctor import examine, report

    parser = argparse.ArgumentParser(prog="headrace doctor", description=doctor.__doc__, allow_abbrev=False)
    parser.add_argument(
        "--url", metavar="URL", help="ask this server, headrace or another, for one token and how it does"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.url is not None or options.uds is not None:
        return _ask_server(options)
    findings = examine()
    print(report(findings))
    return 1 if any(finding.fatal for finding in findings) else 0


def _ask_server(options: argparse.Namespace) -> int:
    from server.client.api import URL, Api, AskError, key_of
    from server.client.checkup import PATIENCE_SECONDS, examine_server, verdict_of

    key = key_of(options.api_key, os.environ)
    try:
        api = Api(options.url or URL, key=key, uds=options.uds, ca_file=options.ca_file, seconds=PATIENCE_SECONDS)
    except AskError as error:
        return _complain("headrace doctor", str(error))
    with contextlib.closing(api):
        findings = examine_server(api)
    print(verdict_of(findings))
    return 1 if any(finding.lost for finding in findings) else 0


def chat(arguments: Sequence[str]) -> int:
    """`headrace chat`: a conversation with a running server."""
    from server.client.chat import chat as run

    return run(arguments)


def keys(arguments: Sequence[str]) -> int:
    """`headrace keys`: the file of API keys."""
    from server.keys.command import keys as run

    return run(arguments)


def serve_parser() -> argparse.ArgumentParser:
    """One flag for each knob. Flags only collect text: `configs.loader` parses and refuses values, whatever their source."""
    from configs.knob import knobs, sections

    parser = argparse.ArgumentParser(
        prog="headrace serve",
        usage="headrace serve [MODEL] [flags]",
        description="Serve a model over OpenAI's HTTP API. MODEL comes first, as a flag may take several values. A flag "
        "beats HEADRACE_<NAME>, which beats the file, which beats the default.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    text = "YAML file of settings, or a preset's name (HEADRACE_CONFIG); may be repeated, the later one wins"
    parser.add_argument("--config", action="append", metavar="FILE", help=text)
    parser.add_argument("--print-config", action="store_true", help="print every setting with its origin, and exit")
    for title, names in sections().items():
        group = parser.add_argument_group(title)
        for name in names:
            knob = knobs()[name]
            accepted = "" if knob.choices else f"{knob.domain}; "
            text = f"{knob.help} [{accepted}{knob.default_text}; {knob.variable}]".replace("%", "%%")
            if name == "model":
                group.add_argument("model", metavar="MODEL", nargs="?", help=text)
            elif knob.kind is bool:
                group.add_argument(knob.flag, action=argparse.BooleanOptionalAction, help=text)
            elif knob.many:
                group.add_argument(knob.flag, action=_Several, nargs="+", metavar=knob.metavar, help=text)
            elif knob.bare is not None:
                group.add_argument(knob.flag, nargs="?", const=knob.bare, metavar=knob.metavar, help=text)
            else:
                group.add_argument(knob.flag, metavar=knob.metavar, help=text)
    return parser


class _Several(argparse.Action):
    """Adds its values to a list. Where there is no MODEL yet, one that looks like a model is not taken for a further value: what
    was meant to be served would become, say, a key.
    """

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        model = None if hasattr(namespace, "model") else next(filter(_like_model, values[1:]), None)
        if model is not None:
            raise argparse.ArgumentError(
                self,
                f"takes several values, and {model!r} looks like MODEL, which comes first: `headrace serve MODEL "
                f"{option_string} ...`. If it is a value, give it with a {option_string} of its own",
            )
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, ()), *values])


def _like_model(value: str) -> bool:
    return value.endswith(".gguf") or ("/" in value and "://" not in value) or os.path.isdir(value)


def _unknown_argument(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    from configs.loader import nearest
    from server.other_flags import meaning_of

    flag = next((word for word in unknown if word.startswith("-")), None)
    if flag is None:
        return f"unexpected argument {unknown[0]!r}; one MODEL is served"
    known = [option for action in parser._actions for option in action.option_strings]
    name = flag.partition("=")[0]
    return f"unknown flag {flag}.{meaning_of(name) or nearest(name, known)}"


def _requirement(entry: EntryPoint) -> str:
    """What pip has to install for this command: its distribution, with the extra of the command's name if there is one."""
    if entry.dist is None:
        return entry.module
    extras = entry.dist.metadata.get_all("Provides-Extra") or []
    return f"{entry.dist.name}[{entry.name}]" if entry.name in extras else entry.dist.name


def _overview() -> str:
    commands = COMMANDS | plugins()
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        ["usage: headrace COMMAND [arguments]", "", *lines, "", "`headrace COMMAND --help` lists its arguments."]
    )


def _complain(prog: str, problem: str) -> int:
    print(f"{prog}: " + problem.replace("\n", "\n  "), file=sys.stderr)
    return EXIT_USAGE


COMMANDS = {
    "serve": Command("Serve a model over HTTP", serve),
    "chat": Command("Chat with a running server", chat),
    "keys": Command("Add, revoke, list and check API keys in a file", keys),
    "doctor": Command(
        "Report what is installed and what is lost without the rest, or how a running server does", doctor
    ),
}
