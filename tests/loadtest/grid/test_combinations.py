"""A command line with alternatives is as many command lines, each with a name of its own."""

import pytest

from loadtest.grid.combinations import combinations


def named(*command: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(each.name, each.command) for each in combinations(command)]


def test_each_alternative_with_each_other():
    assert named("serve", "--budget", "{128,256}", "{,--plain}") == [
        ("--budget 128, without --plain", ("serve", "--budget", "128")),
        ("--budget 128, --plain", ("serve", "--budget", "128", "--plain")),
        ("--budget 256, without --plain", ("serve", "--budget", "256")),
        ("--budget 256, --plain", ("serve", "--budget", "256", "--plain")),
    ]
    assert [name for name, _ in named("serve", "--size={a,b}{1,2}")] == [f"--size={x}{y}" for x in "ab" for y in "12"]
    assert named("{vllm,headrace}", '{"a": 1, "b": 2}')[1] == ("headrace", ("headrace", '{"a": 1, "b": 2}'))


def test_a_command_without_alternatives_is_refused_with_the_likely_cause():
    with pytest.raises(ValueError, match="in quotes"):
        combinations(["serve", "--budget", "128", "256"])
