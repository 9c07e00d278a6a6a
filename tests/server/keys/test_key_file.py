"""The file of keys: what is refused and how it is said, what it says, and how it is changed without touching the rest."""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from server.cli import main
from server.keys.editing import with_key, without_key
from server.keys.entry import KeyLimits
from server.keys.key_file import KeyFileError, parse_key_file, read_key_file


def spelled(key):
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


A, B, C = (spelled(key) for key in "abc")
FILE = f"""# Who may use the server.
keys:
  - name: alice     # of the lab
    hash: {A}
    tenant: lab
    weight: 2
    models: [small]
    expires: 2027-01-31

  # The shop pays by token.
  - name: bob
    hash: "{B}"
    tenant: lab
    highest_priority: -5
    requests_per_minute: 60
    tokens_per_minute: 1000
    concurrent_requests: 2
    expires: 2027-01-31T12:00:00+01:00

# The end.
"""


def test_what_a_file_says():
    file = parse_key_file(FILE, "keys.yaml")
    alice, bob = file.entries
    assert (alice.name, alice.owner, alice.weight, alice.models, alice.limits) == (
        "alice",
        "lab",
        2,
        ["small"],
        KeyLimits(),
    )
    assert alice.expires == datetime(2027, 1, 31, tzinfo=UTC) and bob.expires == datetime(2027, 1, 31, 11, tzinfo=UTC)
    assert bob.limits == KeyLimits(60, 1000, 2) and bob.highest_priority == -5 and not bob.admin
    assert file.weights == {"lab": 2.0}
    assert A[7:] not in repr(file) and repr(alice.hash) not in repr(file)
    assert parse_key_file("keys: []", "keys.yaml").entries == ()


def one(**fields):
    lines = [f"{name}: {value}" for name, value in ({"name": "a", "hash": A} | fields).items() if value is not None]
    return "keys:\n- " + "\n  ".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (one(name="al ice"), 'line 2 (key al ice): `name` must be 1 to 64 letters, .*, got "al ice"'),
        (one(name=None), r"line 2 \(key number 1\): `name` is missing; it must be 1 to 64"),
        (one(name="no"), r"line 2 .*`name` must be .*, got false"),
        (one(hash="sk-hr-secret"), r"line 3 \(key a\): `hash` must be `sha256:` and 64 hexadecimal digits .*, got 12 characters$"),
        (one(hash=A.upper()), "`hash` must be"),
        (one(weight="0.001"), r"line 4 \(key a\): `weight` must be a number from 0.01 to 100, got 0.001"),
        (one(weight=".nan"), "`weight` must be"),
        (one(requests_per_minute="0"), r"`requests_per_minute` must be an integer from 1 to 1000000000, got 0"),
        (one(tokens_per_minute="1.5"), r"`tokens_per_minute` must be an integer .*, got 1.5"),
        (one(concurrent_requests="true"), r"`concurrent_requests` must be an integer .*, got true"),
        (one(highest_priority="3000000000"), "`highest_priority` must be an integer from -2147483648 to 2147483647"),
        (one(models="[]"), "`models` must be a list of at least one non-empty text, got an array of 0"),
        (one(models="small"), '`models` must be .*, got "small"'),
        (one(admin="1"), "`admin` must be true or false, got 1"),
        (one(cache_salt='""'), "`cache_salt` must be text of 1 to 256 characters, got 0 characters"),
        (one(expires="2027-02-30"), "`expires` must be a date"),
        (one(expires="2027-01-31T12:00:00"), "`expires` must be a date, or a time with its zone"),
        (one(wieght="2"), r"line 4 \(key a\): unknown field `wieght`. Did you mean weight\?"),
        (one(key="sk-hr-secret"), r"unknown field `key`: the file has hashes of keys, see `headrace keys add`$"),
        (one() + "\n  name: b", r"line 4: `keys\[0\].name` is given twice"),
        (one() + f"\n- name: a\n  hash: {B}", r"line 4 \(key a\): `name` must be its own, line 2 has it, too"),
        (one() + f"\n- name: b\n  hash: {A}", r"line 4 \(key b\): `hash` must be its own, key a has it, too"),
        (one(tenant="t", weight="2") + f"\n- {{name: b, hash: {B}, tenant: t, weight: 3}}",
         r"line 6 \(key b\): `weight` of tenant t must be 2, as key a has it, got 3"),
        (one(name="key1"), "`name` must not be key1: a key of --api-key has that name"),
        (one(tenant="key1"), "`tenant` must not be key1: a key of --api-key has that name"),
        ("keys:\n- 7", r"line 2: `keys\[0\]` must be fields of a key, got"),
        ("keys: 7", "line 1: `keys` must be a list, for none"),
        ("", r"must hold `keys:` and a list of keys, holds nothing"),
        ("kees: []", "line 1: unknown field `kees`"),
        ("[]", "must hold `keys:`"),
        (f"keys: [{{name: a, hash: {A}", "is no YAML: .*, line 2, column"),
        ("keys: " + "[" * 200_000, "is no YAML: more than 8 levels, line 1, column"),
        ("keys: &a [*a]", r"line 1: `keys\[0\]` must be fields of a key, got a list"),
        ("keys:\n- &a\n  name: *a", "line 2 .*: `name` must be .*, got something that YAML cannot read"),
        ("keys: [*a]", "is no YAML: found undefined alias, line 1"),
    ],
)  # fmt: skip
def test_a_refusal_names_file_line_key_field_what_it_must_be_and_what_it_is(text, said):
    said = said.replace("(key al ice)", r"\(key al ice\)")
    with pytest.raises(KeyFileError, match=said) as caught:
        parse_key_file(text, "keys.yaml", {"key1"})
    assert all(line.startswith("keys.yaml") for line in str(caught.value).splitlines())
    assert "secret" not in str(caught.value), "what stands where a hash should may be a key"


def test_all_problems_are_told_at_once_and_odd_files_are_no_surprise(tmp_path):
    with pytest.raises(KeyFileError) as caught:
        parse_key_file(one(weight="0", admin="1", x="2"), "keys.yaml")
    assert len(str(caught.value).splitlines()) == 3
    (tmp_path / "odd").write_bytes(b"keys: [] # \xff")
    for path, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "no regular file"),
        (tmp_path / "odd", "UTF-8, byte 11"),
    ):
        with pytest.raises(KeyFileError, match=why):
            read_key_file(str(path))


# --- changes ---


def test_a_key_is_added_and_taken_out_and_every_other_line_stays():
    added = with_key(FILE, "keys.yaml", {"name": "carl", "hash": C, "models": ["a b", "c: d"]})
    assert added.startswith(FILE.removesuffix("\n# The end.\n")) and added.endswith("\n# The end.\n")
    assert parse_key_file(added, "f").entries[2].models == ["a b", "c: d"]
    assert without_key(added, "keys.yaml", "carl") == FILE
    alone = without_key(without_key(added, "f", "alice"), "f", "bob")
    assert [entry.name for entry in parse_key_file(alone, "f").entries] == ["carl"] and "pays by token" in alone
    none = without_key(alone, "f", "carl")
    assert parse_key_file(none, "f").entries == () and "# Who may use" in none
    again = with_key(none, "f", {"name": "dora", "hash": A})
    assert [entry.name for entry in parse_key_file(again, "f").entries] == ["dora"] and "# The end." in again


def test_a_list_without_indent_and_a_file_without_a_last_newline_are_changed_in_their_own_way():
    text = f"keys:\n- name: a\n  hash: {A}"
    added = with_key(text, "f", {"name": "b", "hash": B})
    assert added == f"{text}\n- name: b\n  hash: {B}\n"


@pytest.mark.parametrize(
    "flow", [f"keys: [{{name: a, hash: {A}}}]", f"keys: [{{name: a, hash: {A}}},\n  {{name: b, hash: {B}}}]"]
)
def test_what_is_not_a_list_of_lines_is_not_changed(flow):
    with pytest.raises(KeyFileError):
        with_key(flow, "f", {"name": "c", "hash": C})
    with pytest.raises(KeyFileError):
        without_key(flow, "f", "a")


def ask(*words):
    return main(["keys", *map(str, words)])


def test_the_command_shows_a_key_once_and_writes_its_hash(tmp_path, capsys, monkeypatch):
    path = tmp_path / "keys.yaml"
    limits = [
        "--tenant",
        "lab",
        "--weight",
        2,
        "--requests-per-minute",
        60,
        "--models",
        "small",
        "--admin",
        "--expires",
        "30d",
    ]
    assert ask("add", "alice", "--file", path, *limits) == 0
    said = capsys.readouterr()
    key = said.out.strip()
    assert key.startswith("sk-hr-") and len(key) == 49 and key not in said.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and key not in path.read_text()
    (alice,) = read_key_file(str(path)).entries
    assert alice.hash == hashlib.sha256(key.encode()).digest() and alice.admin and alice.weight == 2
    assert 29 < (alice.expires - datetime.now(UTC)).total_seconds() / 86400 < 31
    monkeypatch.setenv("HEADRACE_API_KEYS", str(path))
    path.chmod(0o640)
    assert ask("add", "bob", "--expires", "2027-01-31") == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "the operator's own"
    assert ask("add", "bob") == 1 and "`name` must be its own" in capsys.readouterr().err
    assert ask("add", "carl", "--weight", 0) == 1 and "`weight` must be a number from 0.01" in capsys.readouterr().err
    assert ask("list") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[:4] == ["alice", "lab", "2", "60"] and "2027-01-31" in table[2]
    assert ask("revoke", "alice") == 0 and ask("revoke", "alice") == 1
    assert "has no key alice; it has bob" in capsys.readouterr().err
    assert ask("check") == 0 and "1 keys, 0 of them of admins" in capsys.readouterr().out
    path.write_text("keys:")
    assert ask("check") == 1 and ask("list") == 1 and ask("add", "x") == 1 and path.read_text() == "keys:"
    assert os.listdir(tmp_path) == ["keys.yaml"], "nothing is left beside it"


def test_keys_that_are_added_at_the_same_time_are_all_there(tmp_path, capsys):
    path = tmp_path / "keys.yaml"
    with ThreadPoolExecutor(4) as threads:
        assert not any(threads.map(lambda number: ask("add", f"k{number}", "--file", path), range(12)))
    assert {entry.name for entry in read_key_file(str(path)).entries} == {f"k{number}" for number in range(12)}
    assert len({key for key in capsys.readouterr().out.split() if key.startswith("sk-hr-")}) == 12


def test_the_command_says_what_it_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HEADRACE_API_KEYS", raising=False)
    assert ask("list") == 2 and "HEADRACE_API_KEYS" in capsys.readouterr().err
    assert ask("add", "a", "--file", tmp_path / "none" / "keys.yaml") == 1
    assert "its folder cannot be opened: No such file" in capsys.readouterr().err
