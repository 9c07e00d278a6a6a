"""What tests of grammars on a tiny model share: a vocabulary of bytes and some words, and an engine over it."""

from configs.model.source import resolve_model
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.weights import load_weights
from engine.cpu.worker import CpuWorker
from engine.grammar.forced_tokens import ForcedTokens
from engine.grammar.matchers import Grammars
from engine.ipc.vocabulary import TokenSpellings
from engine.models.registry import read_config
from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler
from tests.scheduler.sim import Engine

BLOCKS, BLOCK, PROMPT = 24, 8, [5, 17, 5, 40, 17, 5, 99, 120, 5, 17]
FIRST_BYTE = 3  # ids before it are special
WORDS = [b'{"', b'":', b'",', b"true", b"false", b"null", b"name", b"age", b"12", b'"}']
TOKENS = [b"<unk>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(256)), *WORDS]


def write_vocabulary(folder):
    """The path of a vocabulary for models of 320 tokens."""
    path = folder / "vocabulary"
    TokenSpellings(TOKENS, [0, 1, 2]).write(path)
    return str(path)


def text_of(tokens):
    """What tokens spell, without special ones."""
    return b"".join(TOKENS[token] for token in tokens if 3 <= token < len(TOKENS)).decode()


class Constrained:
    """Runs requests with grammars on a tiny model."""

    def __init__(self, folder, vocabulary):
        source = resolve_model(str(folder))
        self.config = read_config(source)
        self.decoder = Decoder(self.config, load_weights(source, self.config, "auto"))
        self.vocabulary = vocabulary

    def engine(self, kind=Engine, *, forced=False, **options):
        grammars = Grammars(self.config.vocab_size, self.config.eos_token_ids)
        edits = standard_edits(self.config.vocab_size, self.config.eos_token_ids, grammars)
        if forced:
            options["drafter"] = ForcedTokens(grammars, at_once=True)
        model = ExactModel(self.decoder, KvPool(self.config, BLOCKS, BLOCK))
        worker = CpuWorker(model, CpuSampler(self.config.vocab_size, edits))
        eos = frozenset(self.config.eos_token_ids)
        return kind(blocks=BLOCKS, block_size=BLOCK, worker=worker, eos=eos, **options)

    def run(self, grammar, generated=(), max_tokens=40, *, kind=Engine, forced=False, **asked):
        engine = self.engine(kind, forced=forced)
        engine.add(
            "r",
            PROMPT,
            max_tokens=max_tokens,
            generated=generated,
            **{"grammar": grammar, "vocabulary": self.vocabulary, **asked},
        )
        engine.drain()
        return engine
