"""Beam search among the fields of a request: what it does not heed, and what nothing else heeds.

None of it stands in the published schemas: with one more alternative, schemathesis finds no way through that of a chat.
"""

from typing import Any

# What may not be asked beside a search, with the values that ask for nothing: it finds the likeliest texts by the model's own
# distribution, and knows them at its end.
BESIDE: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stop": ([],),
    "temperature": (0, 1),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "tools": ([],),
    "functions": ([],),
    "thinking_token_budget": (),
}
OWN: dict[str, Any] = {"length_penalty": 1, "early_stopping": False}
