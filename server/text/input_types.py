"""What a model wants before texts that become vectors, by what they are for (its `config_sentence_transformers.json`)."""

from configs.model.pooling import PoolingRules

# What clients call queries and documents, and under which names models have what is put before them. A model without such a prompt
# takes both as they are, as sentence-transformers' `encode_query` and `encode_document` do.
QUERY, DOCUMENT = "query", "document"
_ASKED = {
    "query": QUERY,
    "search_query": QUERY,
    "document": DOCUMENT,
    "passage": DOCUMENT,
    "search_document": DOCUMENT,
}
_NAMES = {QUERY: ("query", "search_query"), DOCUMENT: ("document", "passage", "corpus", "search_document")}


def prompt_for(rules: PoolingRules, *, input_type: str | None = None, prompt_name: str | None = None) -> str:
    """What is put before a text.

    Raises:
        KeyError: the model has no prompt of that name.
    """
    if prompt_name is not None:
        return rules.prompts[prompt_name]
    if input_type is None:
        return rules.prompts.get(rules.default_prompt, "")
    return role_prompt(rules, _ASKED[input_type]) if input_type in _ASKED else rules.prompts[input_type]


def input_types(rules: PoolingRules) -> list[str]:
    """What clients of a model may call their texts."""
    return sorted({*_ASKED, *rules.prompts})


def role_prompt(rules: PoolingRules, role: str) -> str:
    """What is put before queries or documents: the default where there is nothing of their own."""
    names = (name for name in _NAMES[role] if name in rules.prompts)
    return rules.prompts.get(next(names, rules.default_prompt), "")
