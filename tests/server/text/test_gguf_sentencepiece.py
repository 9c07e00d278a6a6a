"""A SentencePiece vocabulary gives the same ids as a GGUF file, as a folder, in transformers, and by llama.cpp's definition."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from server.text.gguf_tokenizer import from_gguf_metadata
from server.text.tokenizer import TokenizerError, load_folder
from tests.drawn import drawn

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
KEY = "tokenizer.ggml."
SPACE = "\u2581"
FIRST = 259  # id of the first token that merging may give
MARKS = [
    ("<|im_end|>", CONTROL),
    ("[INST]", CONTROL),
    ("<think>", USER_DEFINED),
    ("    ", USER_DEFINED),
    ("\n\n", USER_DEFINED),
]


def trained(prompts):
    """Entries and scores in the manner of Llama 2: byte tokens, then pieces whose score is their rank."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(" (?=[^ ])"), behavior="merged_with_next")
    backend.train_from_iterator(prompts, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    characters = [token for token in sorted(model["vocab"], key=model["vocab"].get) if len(token) == 1]
    merged = list(dict.fromkeys("".join(merge) for merge in model["merges"]))
    return [piece.replace(" ", SPACE) for piece in [*merged, *characters]]


def metadata_of(pieces, scores, **keys):
    """A GGUF file's vocabulary with these pieces, and with `MARKS` behind them."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *pieces,
        *(text for text, _ in MARKS),
    ]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces) + [kind for _, kind in MARKS]
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [0.0] * FIRST + scores + [-1000.0] * len(MARKS),
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **keys,
    }
    return {KEY + key: value for key, value in values.items()}


@pytest.fixture(scope="module")
def pieces(prompts):
    return trained(prompts)


@pytest.fixture(scope="module")
def spm(pieces):
    return metadata_of(pieces, [-float(rank) for rank in range(len(pieces))])


def folder_of(metadata, folder, prefix=True):
    """The same vocabulary as Llama 2 was converted for transformers, with transformers' own merges."""
    from transformers.tokenization_utils_base import generate_merges

    tokens, types = metadata[KEY + "tokens"], metadata[KEY + "token_type"]
    normal = [token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL]
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = {token: metadata[KEY + "scores"][vocab[token]] for token in normal}
    merges = generate_merges({token: vocab[token] for token in normal}, scores)
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces] if prefix else [spaces])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    for token, kind in zip(tokens, types, strict=True):
        if kind in (UNKNOWN, CONTROL):
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


# --- llama.cpp's definition --------------------------------------------------------------------------------------------


def stretches(metadata, text):
    """The text in order: stretches of text, and ids of the tokens that are matched whole, longest first."""
    parts = [text] if text else []
    whole = [
        (len(token.encode()), -i, token)
        for i, (token, kind) in enumerate(zip(metadata[KEY + "tokens"], metadata[KEY + "token_type"], strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    for _, negative, token in sorted(whole, reverse=True):
        cut = []
        for part in parts:
            between = part.split(token) if isinstance(part, str) else [part]
            for i, piece in enumerate(between):
                cut += ([-negative] if i else []) + ([piece] if piece != "" else [])
        parts = cut
    return parts


def merged(metadata, text):
    """Join the neighbours that make the best-scored entry, the leftmost of equals, until none do; what is no entry is bytes."""
    ids = {token: i for i, token in enumerate(metadata[KEY + "tokens"])}
    scores = metadata[KEY + "scores"]
    parts = list(text.replace(" ", SPACE))
    while True:
        pairs = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if ids.get(a + b, 0) >= FIRST]
        if not pairs:
            break
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


def llama_cpp(metadata, text, prefix=True):
    """The ids without BOS. Every stretch of text is the first one or stands behind a token, so each gets the space."""
    found = []
    for part in stretches(metadata, text):
        found += [part] if isinstance(part, int) else merged(metadata, " " * prefix + part)
    return found


def names(metadata, ids):
    return [metadata[KEY + "tokens"][i] for i in ids]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<s>G", ["<s>", "\u2581G"]),
        ("<s> G", ["<s>", "\u2581", "\u2581G"]),
        ("G</s>\n<s>G", ["\u2581G", "</s>", "\u2581", "<0x0A>", "<s>", "\u2581G"]),
        ("<s><s></s>", ["<s>", "<s>", "</s>"]),
        ("<think>G", ["<think>", "\u2581G"]),
        ("G    G", ["\u2581G", "    ", "\u2581G"]),
        ("<unk>G", ["<unk>", "\u2581G"]),
        ("\n\n\n", ["\n\n", "\u2581", "<0x0A>"]),
        (" <s> ", ["\u2581", "\u2581", "<s>", "\u2581", "\u2581"]),
        ("", []),
    ],
)
def test_a_stretch_of_text_begins_with_a_space(text, expected):
    plain = metadata_of([SPACE, "G", SPACE + "G"], [-2.0, -3.0, -1.0])
    assert names(plain, from_gguf_metadata(plain).encode(text, add_special_tokens=False)) == expected
    assert names(plain, llama_cpp(plain, text)) == expected


# --- all four ----------------------------------------------------------------------------------------------------------


class Four:
    """One vocabulary, read in four ways."""

    def __init__(self, metadata, folder, prefix):
        from transformers import AutoTokenizer

        self.metadata, self.prefix = metadata, prefix
        self.gguf = from_gguf_metadata(metadata if prefix else metadata | {KEY + "add_space_prefix": False})
        self.folder = load_folder(folder_of(metadata, folder, prefix))
        self.theirs = AutoTokenizer.from_pretrained(folder)

    def agree(self, text):
        """The ids, which are the same in each."""
        ids = self.gguf.encode(text)
        assert ids == self.folder.encode(text) == self.theirs.encode(text)
        assert ids == [1, *llama_cpp(self.metadata, text, self.prefix)]
        return ids


@pytest.fixture(scope="module", params=[True, False], ids=["space prefix", "no prefix"])
def four(request, spm, tmp_path_factory):
    return Four(spm, tmp_path_factory.mktemp("folder"), request.param)


def test_prompts(four, prompts):
    for text in prompts:
        assert four.gguf.decode(four.agree(text[:300])) == text[:300]


marks = st.sampled_from(["<s>", "</s>", "<unk>", *(text for text, _ in MARKS)])
WORDS = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    " the",
    "the ",
    "The",
    "é",
    "e\u0301",
    "你好",
    "🎉",
    SPACE,
    "<0x0A>",
    "<s",
    "s>",
]
words = st.sampled_from(WORDS)
texts = st.lists(st.one_of(marks, words, st.text(max_size=3)), max_size=9).map("".join)


@given(text=texts)
@settings(max_examples=drawn(120))
def test_any_text(four, text):
    ids = four.agree(text)
    for skip in (True, False):
        decoded = four.gguf.decode(ids, skip_special_tokens=skip)
        assert decoded == four.folder.decode(ids, skip_special_tokens=skip)
        assert decoded == four.theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


@given(text=texts, seed=st.integers(0, 19))
@settings(max_examples=drawn(40))
def test_scores_that_are_no_ranks(pieces, tmp_path_factory, text, seed):
    """As a unigram vocabulary has them. Merging with such scores is llama.cpp's way, and so it is ours."""
    draw = random.Random(seed)
    scores = draw.sample([-i / 7 for i in range(5000)], len(pieces))
    metadata = metadata_of(pieces, scores)
    ids = from_gguf_metadata(metadata).encode(text, add_special_tokens=False)
    assert ids == llama_cpp(metadata, text)


@pytest.mark.parametrize(
    ("said", "before", "behind"), [({}, 1, 0), ({"add_bos_token": False}, 0, 0), ({"add_eos_token": True}, 1, 1)]
)
def test_what_the_file_puts_around_a_text(spm, said, before, behind):
    tokenizer = from_gguf_metadata(spm | {KEY + key: value for key, value in said.items()})
    inner = tokenizer.encode("a b", add_special_tokens=False)
    assert tokenizer.encode("a b") == [1] * before + inner + [2] * behind
    assert tokenizer.encode("") == [1] * before + [2] * behind


def test_the_usual_tokens_where_the_file_names_none(spm):
    without = {key: value for key, value in spm.items() if not key.endswith(("bos_token_id", "eos_token_id"))}
    tokenizer = from_gguf_metadata(without | {KEY + "add_eos_token": True})
    inner = tokenizer.encode("a b", add_special_tokens=False)
    assert tokenizer.encode("a b") == [1, *inner, 2]
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    types = spm[KEY + "token_type"]
    tokenizer = from_gguf_metadata(without | {KEY + "token_type": [UNKNOWN, NORMAL, NORMAL, *types[3:]]})
    assert tokenizer.encode("a b") == inner


def test_bytes_of_what_has_no_entry(spm):
    tokenizer = from_gguf_metadata(spm)
    ids = tokenizer.encode("a 🎉", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == " a 🎉".encode()
    assert [tokenizer.token_text(i) for i in ids[-4:]] == [f"bytes:\\x{byte:02x}" for byte in "🎉".encode()]


def test_no_space_prefix_where_the_file_says_so(spm):
    tokenizer = from_gguf_metadata(spm | {KEY + "add_space_prefix": False})
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"
    assert tokenizer.decode(tokenizer.encode(" a b")) == " a b"
    assert not tokenizer.strips_first_space


def test_a_file_without_scores_is_refused(spm):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.ggml\.scores"):
        from_gguf_metadata({key: value for key, value in spm.items() if not key.endswith("scores")})
