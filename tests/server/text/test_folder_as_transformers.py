"""A folder gives the tokens that `AutoTokenizer` gives for it, whatever its tokenizer_config.json says."""

import json
from itertools import product

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from server.text.tokenizer import load_folder

MARKS = ["<unk>", "<s>", "</s>"]


def byte_level():
    vocabulary = [*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece():
    vocabulary = [*MARKS, *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abc"]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=[],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Backend(model)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return backend


def prepended():
    """As Llama 2 was converted."""
    backend = sentencepiece()
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return backend


def metaspace():
    """As later models were."""
    backend = sentencepiece()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return backend


FAMILIES = {
    "byte-level": (byte_level, "PreTrainedTokenizerFast"),
    "qwen": (byte_level, "Qwen2Tokenizer"),
    "llama-2": (prepended, "LlamaTokenizer"),
    "converted": (metaspace, "PreTrainedTokenizerFast"),
}
AROUND = {"nothing": None, "bos": "<s> $A", "both": "<s> $A </s>"}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def template(single):
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each family and what its tokenizer.json puts around a text."""
    made = {}
    for (family, (make, _)), (around, single) in product(FAMILIES.items(), AROUND.items()):
        backend = make()
        backend.add_special_tokens(MARKS)
        if single is not None:
            backend.post_processor = template(single)
        made[family, around] = tmp_path_factory.mktemp("folder")
        backend.save(str(made[family, around] / "tokenizer.json"))
    return made


def both(folder, name="tokenizer_config", **config):
    """Ours and theirs."""
    from transformers import AutoTokenizer

    (folder / f"{name}.json").write_text(json.dumps(config))
    return load_folder(folder), AutoTokenizer.from_pretrained(folder)


# Whether either flag is there, and what it says; the tokens have a name in every other case.
FLAGS = [(bos, eos, i % 2 == 0) for i, (bos, eos) in enumerate(product((None, True, False), repeat=2))]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_put_around_a_text(folders, family, around):
    for bos, eos, named in FLAGS:
        flags = {"add_bos_token": bos, "add_eos_token": eos}
        config = {name: flag for name, flag in flags.items() if flag is not None} | (NAMED if named else {})
        ours, theirs = both(folders[family, around], tokenizer_class=FAMILIES[family][1], **config)
        text = "ab cab"
        inner = ours.encode(text, add_special_tokens=False)
        assert ours.encode(text) == theirs.encode(text), config
        assert ours.encode(text) == [1] * (around != "nothing") + inner + [2] * (around == "both"), config


def test_the_flags_say_nothing_without_the_names_of_the_tokens(folders):
    ours, theirs = both(folders["byte-level", "nothing"], add_bos_token=True, add_eos_token=True)
    assert ours.encode("a") == theirs.encode("a") == ours.encode("a", add_special_tokens=False)


DECLARED = {"1": {"content": "<s>", "special": True}}


@pytest.mark.parametrize(
    ("config", "older"),
    [
        ({"eos_token": "</s>"}, {"eos_token": "<s>"}),
        ({"eos_token": "</s>", "added_tokens_decoder": DECLARED}, {"eos_token": "<s>", "bos_token": "<s>"}),
        ({"eos_token": "</s>"}, {"bos_token": {"content": "<s>", "lstrip": False}}),
        ({"eot_token": "a", "bos_token": "<s>"}, {}),
        ({"extra_special_tokens": {"turn_token": "a"}}, {}),
    ],
    ids=["the older file decides", "it is not read", "it adds", "a name of the model's own", "names in an object"],
)
def test_the_names_of_special_tokens(folders, config, older):
    folder = folders["byte-level", "bos"]
    (folder / "special_tokens_map.json").write_text(json.dumps(older))
    ours, theirs = both(folder, tokenizer_class="PreTrainedTokenizerFast", **config)
    (folder / "special_tokens_map.json").unlink()
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"single_word": True}, {"normalized": False}], ids=str)
@pytest.mark.parametrize(("special", "declared"), list(product((None, True, False), (True, False))))
def test_a_token_that_both_files_declare(tmp_path, special, declared, flags):
    """The flags of tokenizer_config.json count, but what is special in either is special."""
    backend = byte_level()
    backend.add_special_tokens(MARKS)
    if special is not None:
        backend.add_tokens([AddedToken("<x>", special=special)])
    backend.save(str(tmp_path / "tokenizer.json"))
    entry = {"content": "<x>", "special": declared, **flags}
    ours, theirs = both(tmp_path, tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder={"259": entry})
    for text in ("a <x>b", "<x> <x>", "a<x>"):
        assert ours.encode(text) == theirs.encode(text)
        for skip in (True, False):
            decoded = theirs.decode(theirs.encode(text), skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ours.encode(text), skip_special_tokens=skip) == decoded


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_special_tokens_without_a_name(folders, key):
    ours, theirs = both(folders["byte-level", "bos"], **{key: ["a", "b"]})
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.encode("cab") == theirs.encode("cab")
    assert ours.decode(ours.encode("cab")) == "c"


def test_an_added_token_that_is_only_listed_stays_what_it_is(tmp_path):
    backend = byte_level()
    backend.add_special_tokens(MARKS)
    backend.add_tokens([AddedToken("<think>", special=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = both(tmp_path, tokenizer_class="PreTrainedTokenizerFast", additional_special_tokens=["<think>"])
    ids = ours.encode("a<think>b")
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "a<think>b"


SPACES = decoders.Metaspace(prepend_scheme="always")


@pytest.mark.parametrize(
    "steps",
    [
        [SPACES, decoders.ByteFallback(), decoders.Fuse()],
        [decoders.ByteFallback(), SPACES],
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()],
    ],
    ids=["spaces first", "bytes first", "no prefix"],
)
def test_unigram_with_bytes(tmp_path, steps):
    pieces = [*MARKS, *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abc", "\u2581ab"]
    backend = Backend(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(MARKS)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = both(tmp_path, tokenizer_class="PreTrainedTokenizerFast", **NAMED)
    for text in ("ab cab", "a<s>b", "\u4f60 \u00e9\n c"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        for skip in (True, False):
            decoded = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == decoded
