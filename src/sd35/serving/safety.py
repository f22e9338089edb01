"""The prompt filter: a policy in words, and one search through both readings of a prompt.

All terms of all lists go into Aho-Corasick automata, so a prompt costs the same for ten terms and for ten
thousand. A word must stand alone, and so it is searched with the spaces around it; the squashed reading has
no spaces, and there a find counts only if it begins and ends where words do and looks like a disguise
(`normalise.py`). Chinese has no spaces: such lists match anywhere in the text.

A word list is easily evaded by whoever says the same in other words. It keeps out what must not be asked
for by its name; what a picture shows is judged by an output check (`output_check.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sd35.errors import LibraryError
from sd35.serving.normalise import Plain, Squashed, fold, loose, plain, squashed
from sd35.serving.policy import PolicyFile, TermList, read_policy
from sd35.serving.seams import Verdict

try:
    import ahocorasick
except ImportError as error:
    raise LibraryError(
        "The prompt filter needs the package pyahocorasick: pip install 'sd35-fp8[serve]'."
    ) from error

_SHORTEST_DISGUISED = 3  # letters; "a-s" is no disguise of anything
_SHORTEST_REVERSED = 5  # below that, innocent words turn up


ALLOWED = Verdict(True)


@dataclass(frozen=True)
class _Find:
    """What an automaton answers: a term of a list, or one of the list's exceptions."""

    list_name: str
    term: str
    letters: int
    words: int
    starts_word: bool
    ends_word: bool
    is_exception: bool = False


class PromptPolicy:
    """A policy, ready to judge. Safe to use from many threads."""

    def __init__(self, policy: PolicyFile) -> None:
        self._policy = policy
        self._plain = _Automaton()
        self._squashed = _Automaton()
        self._anywhere = _Automaton()
        for terms in policy.lists:
            self._add(terms)
        for automaton in (self._plain, self._squashed, self._anywhere):
            automaton.close()

    @classmethod
    def read(cls, path: Path) -> "PromptPolicy":
        """The policy of a YAML file; MissingError or RequestError with the place of what is wrong."""
        return cls(read_policy(path))

    def judge(self, text: str, key_id: str | None = None) -> Verdict:
        """Whether the lists that hold for this key let the text pass. Negative prompts are texts too."""
        lists = self._policy.lists_of(key_id)
        if not lists or not text:
            return ALLOWED
        folded = fold(text)
        for find in self._finds(folded):
            if find.list_name in lists:
                return Verdict(False, find.list_name, find.term)
        return ALLOWED

    def _finds(self, folded: str) -> Iterator[_Find]:
        reading = plain(folded)
        yield from self._in_plain(reading)
        if self._anywhere.size:
            text = reading.text.replace(" ", "")
            yield from (find for _, finds in self._anywhere.search(text) for find in finds)
        if self._squashed.size:
            yield from self._in_squashed(squashed(folded))

    def _in_plain(self, reading: Plain) -> Iterator[_Find]:
        found = [
            (*reading.words(end - find.letters + 1, end), find)
            for end, finds in self._plain.search(reading.text)
            for find in finds
        ]
        excused = [entry for entry in found if entry[2].is_exception]
        for first, last, find in found:
            inside = any(
                find.list_name == other.list_name and begin <= first and last <= end
                for begin, end, other in excused
            )
            if not find.is_exception and not inside:
                yield find

    def _in_squashed(self, reading: Squashed) -> Iterator[_Find]:
        for end, finds in self._squashed.search(reading.text):
            for find in finds:
                begin = end - find.letters
                if find.starts_word and not reading.seams.opens[begin]:
                    continue
                if find.ends_word and not reading.seams.closes[end - 1]:
                    continue
                if self._is_reversed(find, reading.text[begin:end]) or reading.looks_disguised(
                    begin, end, find.words
                ):
                    yield find

    @staticmethod
    def _is_reversed(find: _Find, letters: str) -> bool:
        """Whether the find is the term spelled backwards, which is disguise enough."""
        return letters != loose(fold(find.term))

    def _add(self, terms: TermList) -> None:
        for term in terms.terms:
            self._add_term(terms, term)
        for phrase in terms.exceptions:
            words = " ".join(plain(fold(phrase)).text.split())
            find = _Find(terms.name, phrase, len(words) + 2, 1, True, True, is_exception=True)
            self._plain.add(f" {words} ", find)

    def _add_term(self, terms: TermList, term: str) -> None:
        folded = fold(term)
        words = plain(folded).text.strip()
        starts, ends = terms.match != "substring", terms.match == "word"
        if terms.match == "substring":
            together = words.replace(" ", "")
            self._anywhere.add(together, _Find(terms.name, term, len(together), 1, False, False))
        else:
            pattern = f" {words}{' ' * ends}"
            self._plain.add(pattern, _Find(terms.name, term, len(pattern), 1, True, ends))
        letters = loose(folded)
        if terms.disguises and len(letters) >= _SHORTEST_DISGUISED:
            find = _Find(terms.name, term, len(letters), len(words.split()), starts, ends)
            self._squashed.add(letters, find)
            if ends and len(letters) >= _SHORTEST_REVERSED and letters != letters[::-1]:
                self._squashed.add(letters[::-1], find)


class _Automaton:
    """Aho-Corasick over patterns that may each stand for several terms."""

    def __init__(self) -> None:
        self._finds: dict[str, list[_Find]] = {}
        self._automaton = ahocorasick.Automaton()

    @property
    def size(self) -> int:
        """How many patterns there are."""
        return len(self._finds)

    def add(self, pattern: str, find: _Find) -> None:
        """One more pattern."""
        self._finds.setdefault(pattern, []).append(find)

    def close(self) -> None:
        """No more patterns: make ready to search."""
        for pattern, finds in self._finds.items():
            self._automaton.add_word(pattern, finds)
        if self._finds:
            self._automaton.make_automaton()

    def search(self, text: str) -> Iterator[tuple[int, list[_Find]]]:
        """Each place where a pattern ends (the letter behind it), and what the pattern stands for."""
        if not self._finds:
            return
        for last, finds in self._automaton.iter(text):
            yield last + 1, finds
