"""Where reports go: seen to before anything is measured, so that no finished run is lost to a folder that cannot be written."""

import os
import tempfile
from argparse import ArgumentParser, _ArgumentGroup
from collections.abc import Iterable
from pathlib import Path


def add_output_options(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Where a run goes, and whether what is there may be overwritten."""
    parser.add_argument("--output", type=Path, metavar="DIR", help="write run.json, report.html and pictures there")
    parser.add_argument("--overwrite", action="store_true", help="what an earlier run left in --output")


class OutputError(ValueError):
    """Nothing can be written there, or something is there already; the message names the path and what helps."""


def ready_folder(folder: Path, names: tuple[str, ...], *, overwrite: bool = False) -> None:
    """Make sure that files can be made in `folder`, which is created if it is missing.

    Args:
        names: of files that must not be there yet, unless they may be overwritten.

    Raises:
        OutputError: it is a file, cannot be made or written, or has one of these files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
        raise OutputError(f"--output {folder}: nothing can be written there: {reason}") from None
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise OutputError(f"--output {folder} has a {there[0]} already: take another folder, or --overwrite it")


def ready_file(path: Path, option: str) -> None:
    """Make sure that `path` can be written. Raises OutputError, which names the `option`."""
    try:
        if path.is_dir():
            raise OutputError(f"{option} {path}: a file is expected, and it is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"{option} {path}: it must not be written")
    except OSError as error:
        raise OutputError(f"{option} {path}: it cannot be written: {error.strerror or error}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is whole whenever it is there: beside it, then renamed."""
    write_pieces(path, [text])


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """The same with a text that is made while it is written."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
