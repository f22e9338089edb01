"""The policy file: what it may say, and what is refused rather than guessed."""

from pathlib import Path

import pytest

from sd35.errors import MissingError, RequestError
from sd35.serving.policy import policy_of, read_policy


def test_a_policy_is_read(tmp_path: Path) -> None:
    """Lists with their settings, keys with their lists; Chinese matches anywhere unless told otherwise."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        "lists:\n  a: {terms: [x y], except: [x y z]}\n  b: {language: zh, terms: [气球]}\n"
        "keys:\n  default: [a]\n  k1: []\n",
        encoding="utf-8",
    )
    policy = read_policy(file)
    a, b = policy.lists
    assert (a.terms, a.exceptions, a.match, a.disguises) == (("x y",), ("x y z",), "word", True)
    assert b.match == "substring"
    assert policy.lists_of("k1") == frozenset()
    assert policy.lists_of("k2") == policy.lists_of(None) == {"a"}


def test_without_a_default_all_lists_hold() -> None:
    """A policy that says nothing of keys holds for everybody."""
    policy = policy_of({"lists": {"a": {"terms": ["x"]}, "b": {"terms": ["y"]}}})
    assert policy.lists_of("k") == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lists: {a: {terms: [x]}}\nlist: {}", "unknown field 'list'"),
        ("lists: {a: {terms: [x], mode: word}}", "unknown field 'mode'"),
        ("lists: {a: {terms: [x], match: regex}}", "a.match can't be 'regex'"),
        ("lists: {a: {terms: [x], disguises: maybe}}", "disguises"),
        ("lists: {a: {terms: [no]}}", "quotes"),
        ("lists: {a: {terms: x}}", "list of texts"),
        ("lists: {a: {}}", "a.terms"),
        ("lists: {a: {terms: ['...']}}", "no letter"),
        ("lists: {a: {terms: [x]}}\nkeys: {k: [b]}", "no such list"),
        ("lists: {a: {terms: [x]}, a: {terms: [y]}}", "a is there twice"),
        ("lists: [a]", "lists must be names"),
        ("- a", "the policy must be names"),
        ("lists: {a: [", "no YAML"),
        ("lists: !!python/object/apply:os.getcwd []", "no YAML"),
    ],
)
def test_what_it_can_not_mean_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """One sentence with the file's name and the place that is wrong."""
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=r"policy\.yaml") as refusal:
        read_policy(file)
    assert reason in str(refusal.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """No file, or one in another encoding, is an unavailable path."""
    with pytest.raises(MissingError, match="nowhere"):
        read_policy(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"lists: \xe9")
    with pytest.raises(MissingError, match="latin"):
        read_policy(tmp_path / "latin.yaml")
