"""Who guesses for an engine."""

from collections.abc import Callable

from configs.settings import Settings
from engine.drafting.draft_model import DraftModel
from engine.drafting.draft_worth import DraftWorth
from engine.drafting.lookup import PromptLookup
from engine.drafting.model_drafter import ModelDrafter
from engine.drafting.several import Drafters
from engine.grammar.forced_tokens import ForcedTokens
from engine.grammar.matchers import Grammars
from scheduler.drafting import Drafter

Run = Callable[[Callable[[], object]], object]


def drafter_of(
    settings: Settings,
    grammars: Grammars,
    *,
    at_once: bool,
    auto: bool,
    draft: tuple[DraftModel, Run] | None = None,
) -> Drafter:
    """What the operator asks for: `speculation`.

    Args:
        settings: the engine's.
        grammars: of the worker's sequences.
        at_once: whether the worker takes one step at a time.
        auto: whether "auto" looks guesses up: where verified ones change no bit of an answer.
        draft: a draft model, and what does some work in the worker's thread; None: there is none.
    """
    drafters: list[Drafter] = [ForcedTokens(grammars, at_once=at_once)]
    if draft is not None:
        model, run = draft
        drafter = ModelDrafter(model, run, DraftWorth(), at_once=at_once)
        return Drafters([*drafters, PromptLookup(at_once=at_once, rival=drafter), drafter])
    if settings.speculation == "lookup" or (auto and settings.speculation == "auto"):
        drafters.append(PromptLookup(at_once=at_once))
    return Drafters(drafters) if len(drafters) > 1 else drafters[0]
