"""No data becomes code: nothing in the tree unpickles, evaluates, or loads objects, and what a wire brings is of declared types."""

import ast
import io
import json
import os
import pickle

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.loader import ConfigError, load
from engine.ipc.codec import MessageCodec, ProtocolError
from scheduler.types.messages import COMMANDS, EVENTS, AddRequest
from scheduler.types.sampling_params import SamplingParams
from tests.drawn import drawn
from tests.source_tree import PACKAGES, ROOT, imports, sources, tree

PROJECT = sources(*PACKAGES)
UNPICKLING = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
    "copyreg",
}
RUNNING = {"eval", "exec", "compile", "execfile", "__import__"}
SHELLS = {"system", "popen", "getoutput", "getstatusoutput"}
SAFE_YAML = {
    *("safe_load", "safe_dump", "YAMLError", "MarkedYAMLError", "SafeLoader", "SafeDumper"),
    # Events and nodes: text with its place in the file, of which only a loader makes objects.
    *(
        "parse",
        "CollectionStartEvent",
        "CollectionEndEvent",
        "compose",
        "CollectionNode",
        "MappingNode",
        "SequenceNode",
    ),
}
REMOTE = {"trust_remote_code", "AutoModel", "AutoTokenizer", "AutoConfig", "from_pretrained"}


BY_TRANSFORMERS = {
    "by_transformers.py",
    "transformers_decoder.py",
}  # models that its classes compute: its own, and no others


def findings(module: ast.Module, *, by_transformers: bool = False):
    """What in a module could turn data into code, as (line, what). `by_transformers`: it may use transformers' own classes."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "yaml" and node.attr not in SAFE_YAML:
                yield node.lineno, f"yaml.{node.attr}"
            if node.value.id in ("os", "subprocess") and node.attr in SHELLS:
                yield node.lineno, f"{node.value.id}.{node.attr}"
        if (
            isinstance(node, ast.Attribute | ast.Name)
            and (name := getattr(node, "attr", getattr(node, "id", ""))) in REMOTE
            and not by_transformers
        ):
            yield node.lineno, name
        if isinstance(node, ast.Call):
            yield from in_call(node)
            if by_transformers and ast.unparse(node.func).endswith((".from_pretrained", ".from_config")):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("trust_remote_code") != "False":
                    yield node.lineno, "code of others is not refused"


def in_call(call: ast.Call):
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    on = ast.unparse(call.func)
    if isinstance(call.func, ast.Name) and call.func.id in RUNNING:
        yield call.lineno, on
    if on in ("torch.load", "load_state_dict_from_url") and "weights_only" not in keywords:
        yield call.lineno, on
    if "weights_only" in keywords and ast.unparse(keywords["weights_only"]) != "True":
        yield call.lineno, "weights_only"
    if "allow_pickle" in keywords and ast.unparse(keywords["allow_pickle"]) != "False":
        yield call.lineno, "allow_pickle"
    if on in ("np.load", "numpy.load") and "allow_pickle" not in keywords:
        yield call.lineno, on
    if on.rpartition(".")[2] in ("send_pyobj", "recv_pyobj"):
        yield call.lineno, on
    if "shell" in keywords:
        yield call.lineno, "shell"
    yield from ((call.lineno, name) for name in REMOTE & keywords.keys() if ast.unparse(keywords[name]) != "False")


@pytest.mark.parametrize("folder", PACKAGES)
def test_nothing_turns_data_into_code(folder):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sources(folder)
        for line, what in findings(tree(path), by_transformers=path.name in BY_TRANSFORMERS)
    ]
    assert found == []


@pytest.mark.parametrize("folder", PACKAGES)
def test_nothing_that_unpickles_is_imported(folder):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources(folder)
        for line, name in imports(path)
        if name.partition(".")[0] in UNPICKLING or name.startswith(("torch.package", "torch.hub", "multiprocessing"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(code)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "socket.recv_pyobj()",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
    ],
)
def test_the_search_finds_each_kind(text):
    assert list(findings(ast.parse(text)))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("AutoConfig.from_pretrained(folder, trust_remote_code=False)", True),
        ("AutoConfig.from_pretrained(folder)", False),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust)", False),
        ("classes.from_config(config)", False),
    ],
)
def test_transformers_own_classes_are_all_that_its_files_may_use(text, good):
    assert (not list(findings(ast.parse(text), by_transformers=True))) is good
    assert list(findings(ast.parse(text))) or ".from_config" in text


def test_the_search_sees_the_whole_project():
    assert len(PROJECT) > 200
    assert sum(1 for path in PROJECT for node in ast.walk(tree(path)) if isinstance(node, ast.Call)) > 5000


# --- messages -----------------------------------------------------------------------------------------------------------

CODECS = {"commands": MessageCodec(COMMANDS), "events": MessageCodec(EVENTS)}
NAMES = [kind.__name__.encode() for kind in (*COMMANDS, *EVENTS)]
VALID = CODECS["commands"].encode(
    AddRequest(request_id="r", prompt_ids=[1, 2], sampling=SamplingParams(max_tokens=3, seed=1, logit_bias={5: -1.0}))
)


class Touching:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_message_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "run"
    payload = pickle.dumps(Touching(marker))
    for codec in CODECS.values():
        for name in (*NAMES, payload, b"builtins.eval", b"__reduce__"):
            with pytest.raises(ProtocolError):
                codec.decode(name + b"\0" + payload)
    extension = msgspec.msgpack.encode({"request_ids": [msgspec.msgpack.Ext(1, payload)]})
    with pytest.raises(ProtocolError):
        CODECS["commands"].decode(b"AbortRequests\0" + extension)
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists()  # it would have been


@given(st.data())
@settings(max_examples=drawn(300))
def test_any_change_of_a_real_message_is_a_message_or_a_protocol_error(data):
    name, body = VALID.split(b"\0", 1)
    body = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] + data.draw(st.binary(max_size=4))
    try:
        message = CODECS["commands"].decode(name + b"\0" + bytes(body))
    except ProtocolError as error:
        assert len(str(error)) < 300
        return
    assert type(message) is AddRequest
    assert type(message.prompt_ids) is list and all(type(token) is int for token in message.prompt_ids)
    assert type(message.sampling) is SamplingParams


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1 entries, of which none is there
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x81\xabrequest_ids\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\xc1",
    ],
    ids=range(8),
)
@pytest.mark.parametrize("name", NAMES)
def test_counts_that_a_message_only_announces_are_refused(name, body):
    codec = CODECS["commands" if name in NAMES[: len(COMMANDS)] else "events"]
    with pytest.raises(ProtocolError):
        codec.decode(name + b"\0" + body)


# --- files of settings and of traces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"]
)
def test_a_settings_file_makes_no_objects(tmp_path, tag):
    marker, file = tmp_path / "run", tmp_path / "settings.yaml"
    file.write_text(f"model: {tag} ['{marker}']\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load({}, {}, str(file))
    assert not marker.exists()
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(file.read_text(encoding="utf-8"))


def test_a_trace_is_text_whatever_stands_in_it(tmp_path):
    from loadtest.workload.traces.read import read_trace

    marker = tmp_path / "run"
    code = f"__import__('os').mkdir({str(marker)!r})"
    for name, text in (
        ("own.jsonl", json.dumps({"arrival": code, "prompt_tokens": code, "output_tokens": code}) + "\n"),
        (
            "mooncake.jsonl",
            json.dumps({"timestamp": code, "input_length": 1, "output_length": 1, "hash_ids": [code]}) + "\n",
        ),
        ("burst.csv", f"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n{code},a,1,1,2,b\n"),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError):
            read_trace(path)
    path = tmp_path / "pickle.jsonl"
    buffer = io.BytesIO()
    pickle.dump(Touching(marker), buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError):
        read_trace(path)
    assert not marker.exists()
