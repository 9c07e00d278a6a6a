"""Text: tokens from text, text from tokens, and prompts from conversations. No HTTP, no engine."""

from pathlib import Path

from configs.model.gguf_header import read_gguf_header
from server.text.gguf_tokenizer import from_gguf_metadata
from server.text.tokenizer import Tokenizer, load_folder


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the model at `path`, a Hugging Face folder or a GGUF file (`ModelSource.path`).

    Raises:
        TokenizerError: it is missing, unreadable or of an unknown kind; the message lists the known kinds.
        ModelError: the GGUF file cannot be read.
    """
    return load_folder(path) if path.is_dir() else from_gguf_metadata(read_gguf_header(path).metadata)
