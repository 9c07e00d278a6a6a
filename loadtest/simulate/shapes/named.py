"""A model by what a command line calls it."""

from pathlib import Path

from loadtest.simulate.shapes.config_json import read_config_json
from loadtest.simulate.shapes.gguf_file import read_gguf_file
from loadtest.simulate.specs import ModelSpec, load_model

HELP = "a YAML file or its name in configs/presets/models, a folder with a config.json, such a file, or a GGUF file"


def named_model(name: str) -> ModelSpec:
    """The model that a path or a name stands for.

    Raises:
        SpecError: there is none, or it has what is not modelled.
        ModelError: its file cannot be read.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return read_gguf_file(path)
    if path.is_dir():
        return read_config_json(path / "config.json", path.resolve().name)
    if path.suffix == ".json":
        return read_config_json(path, path.resolve().parent.name)
    return load_model(name)
