"""Who guesses for an engine."""

from configs.settings import Settings
from engine.drafting.lookup import PromptLookup
from engine.drafting.several import Drafters
from engine.grammar.forced_tokens import ForcedTokens
from engine.grammar.matchers import Grammars
from scheduler.drafting import Drafter


def drafter_of(settings: Settings, grammars: Grammars, *, at_once: bool, auto: bool) -> Drafter:
    """What the operator asks for: `speculation`.

    Args:
        settings: the engine's.
        grammars: of the worker's sequences.
        at_once: whether the worker takes one step at a time.
        auto: whether "auto" looks guesses up: where verified ones change no bit of an answer.
    """
    forced = ForcedTokens(grammars, at_once=at_once)
    if settings.speculation == "lookup" or (auto and settings.speculation == "auto"):
        return Drafters([forced, PromptLookup(at_once=at_once)])
    return forced
