"""The policy file: which words, in which lists, for which keys.

    lists:
      weapons:
        language: en            # zh, ja, th: matched anywhere in the text, for they have no spaces
        match: word             # word (default) | prefix ("gun" also in "gunfire") | substring
        terms: [gun, hand grenade]
        except: [glue gun]      # phrases in which a term of this list does not count
        disguises: true         # also look through disguises (default)
    keys:
      default: [weapons]        # for every key that is not named here; without it, all lists
      3f2a9c0d11e4b7a8: []      # a key's id: the lists that hold for it

Unknown fields and double entries are refused: a policy that says less than its author believes is worse
than none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sd35.errors import LibraryError, MissingError, RequestError
from sd35.serving.normalise import fold, plain

try:
    import yaml
except ImportError as error:
    raise LibraryError(
        "The prompt filter needs the package pyyaml: pip install 'sd35-fp8[serve]'."
    ) from error

Match = Literal["word", "prefix", "substring"]
_UNSPACED = {"zh", "ja", "th", "lo", "km", "my"}
_LIST_FIELDS = {"language", "match", "terms", "except", "disguises"}


@dataclass(frozen=True, kw_only=True)
class TermList:
    """Terms that are refused together."""

    name: str
    terms: tuple[str, ...]
    match: Match = "word"
    exceptions: tuple[str, ...] = ()
    disguises: bool = True


@dataclass(frozen=True)
class PolicyFile:
    """All lists, and which of them hold for whom (`default` for whoever is not named)."""

    lists: tuple[TermList, ...]
    keys: Mapping[str, frozenset[str]]

    def lists_of(self, key_id: str | None) -> frozenset[str]:
        """The names of the lists that hold for a key."""
        default = self.keys.get("default")
        if default is None:
            default = frozenset(terms.name for terms in self.lists)
        return self.keys.get(key_id or "default", default)


def read_policy(path: Path) -> PolicyFile:
    """The policy that a file holds; MissingError without one, RequestError for what it can't mean."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"The policy {path} can't be read ({error}): name a file in UTF-8.") from error
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"The policy {path} is no YAML ({reason}): correct it.") from error
    try:
        return policy_of(content)
    except RequestError as error:
        raise RequestError(f"The policy {path} can't be used: {error}") from error


def policy_of(content: Any) -> PolicyFile:
    """The policy that a parsed document means."""
    document = _fields(content, {"lists", "keys"}, "the policy")
    lists = tuple(
        _term_list(str(name), facts) for name, facts in _mapping(document.get("lists"), "lists").items()
    )
    names = {terms.name for terms in lists}
    keys = {}
    for key, chosen in _mapping(document.get("keys", {}), "keys").items():
        keys[str(key)] = frozenset(_texts(chosen, f"keys.{key}"))
        if unknown := keys[str(key)] - names:
            raise RequestError(f"keys.{key} names {', '.join(sorted(unknown))}, and there is no such list.")
    return PolicyFile(lists, keys)


def _term_list(name: str, content: Any) -> TermList:
    facts = _fields(content, _LIST_FIELDS, f"the list {name}")
    usual = "substring" if facts.get("language") in _UNSPACED else "word"
    match, disguises = facts.get("match", usual), facts.get("disguises", True)
    if match not in get_args(Match):
        raise RequestError(f"{name}.match can't be {match!r}: choose one of {', '.join(get_args(Match))}.")
    if not isinstance(disguises, bool):
        raise RequestError(f"{name}.disguises can't be {disguises!r}: give true or false.")
    return TermList(
        name=name,
        terms=_terms(facts.get("terms"), f"{name}.terms"),
        match=match,
        exceptions=_terms(facts.get("except", []), f"{name}.except"),
        disguises=disguises,
    )


def _terms(content: Any, place: str) -> tuple[str, ...]:
    terms = _texts(content, place)
    for term in terms:
        if not plain(fold(term)).text.strip():
            raise RequestError(f"{place} has {term!r}, which holds no letter that could be found: remove it.")
    return terms


def _texts(content: Any, place: str) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(entry, str) for entry in content):
        raise RequestError(
            f"{place} must be a list of texts; put quotes around words such as no, yes and 12."
        )
    return tuple(content)


def _mapping(content: Any, place: str) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise RequestError(f"{place} must be names and what they stand for.")
    return content


def _fields(content: Any, known: set[str], place: str) -> dict[Any, Any]:
    facts = _mapping(content, place)
    if unknown := {str(name) for name in facts} - known:
        raise RequestError(
            f"{place} has the unknown field {sorted(unknown)[0]!r}: it may have {', '.join(sorted(known))}."
        )
    return facts


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]  # pyyaml has no types
    """PyYAML's safe loader, which otherwise lets a second entry of a name replace the first in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)
