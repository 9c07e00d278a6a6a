"""Another spelling for some entries of a vocabulary, in the form in which `tokenizers` writes a tokenizer as JSON."""

from collections.abc import Mapping
from typing import Any


def respelled(description: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The description of a tokenizer (a `tokenizer.json`) in which these entries have other names and the same ids.

    Nothing leads to their old spellings any more: merges that make or take one of them are left out.
    """
    added = [
        {**token, "content": names.get(token["content"], token["content"])} for token in description["added_tokens"]
    ]
    model: dict[str, Any] = {**description["model"]}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        model["vocab"] = {names.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
    else:  # Unigram's: the id is the place
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, names)]
    return {**description, "added_tokens": added, "model": model}


def _touches(merge: list[str], names: Mapping[str, str]) -> bool:
    left, right = merge
    return left in names or right in names or left + right in names
