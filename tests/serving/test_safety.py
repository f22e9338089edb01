"""The prompt filter: disguises are seen through, innocent texts are left alone, exceptions and keys hold."""

import sys
from pathlib import Path

import pytest

from sd35.serving.policy import policy_of
from sd35.serving.safety import PromptPolicy, Verdict

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "prompt_filter"


@pytest.fixture(scope="module")
def policy() -> PromptPolicy:
    """Two lists of harmless words, English and Chinese."""
    english = {
        "terms": ["forbidden", "ham", "stone idol", "balloon"],
        "except": ["ham radio"],
        "language": "en",
    }
    chinese = {"language": "zh", "terms": ["气球"]}
    return PromptPolicy(policy_of({"lists": {"words": english, "zh": chinese}, "keys": {"free": ["zh"]}}))


@pytest.mark.parametrize(
    "text",
    [
        "a Forbidden town",
        "ｆｏｒｂｉｄｄｅｎ",
        "𝖋𝖔𝖗𝖇𝖎𝖉𝖉𝖊𝖓",
        "🅵🅾🆁🅱🅸🅳🅳🅴🅽",
        "ꜰᴏʀʙɪᴅᴅᴇɴ",
        "fоrbіddеn",
        "fօrbiddeո",
        "ƒørƀɨđđɇŋ",
        "for\u200bbid\u00adden",
        "fo\u3164rbid\U000e0061den",
        "f\u0336o\u0301rbidden",
        "f o r b i d d e n",
        "a f.o.r.b.i.d.d.e.n town",
        "f\no\nr\nb\ni\nd\nd\ne\nn",
        "for🙂bid🙂den",
        "f0rb1dd3n",
        "f 0 r b 1 d d 3 n",
        "forrrrbidden",
        "neddibrof",
        "\u202eneddibrof\u202c",
        "(for:1.2)(bidden)",
        "forb[idden:0.55]",
        "((forbidden:1.3))",
        "&#102;orbidden",
        "%66orbidden",
        "%2566orbidden",
        "\\u0066orbidden",
        "foIIow the baIIoon",
        "h4m",
        "h-a-m",
        "stone\nidol",
        "st0ne_idol",
        "stoneidol",
        "一个气 球",
        "一个气。球",
    ],
)
def test_disguises_are_seen_through(policy: PromptPolicy, text: str) -> None:
    """Each of these says a word of the lists to a reader or to the model."""
    assert not policy.judge(text).allowed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a hamster in Birmingham with champagne",
        "a stone, an idol",
        "a bal, loon",
        "oh, am I late?",
        "sham rock",
        "天气很好，小球",
        "H A P P Y birthday",
        "(masterpiece:1.2), 8k, f/1.8",
        "she'll, he'll, U.S.A.",
        "ham radio operator",
    ],
)
def test_innocent_texts_pass(policy: PromptPolicy, text: str) -> None:
    """A word inside another, two words that make one, an exception: none of them is blocked."""
    assert policy.judge(text) == Verdict(True)


def test_an_exception_excuses_nothing_else(policy: PromptPolicy) -> None:
    """The phrase passes, the word beside it does not."""
    assert policy.judge("a ham radio and ham") == Verdict(False, "words", "ham")


def test_a_verdict_names_list_and_term(policy: PromptPolicy) -> None:
    """What is reported is the policy's own spelling, not the person's prompt."""
    assert policy.judge("st0ne idol") == Verdict(False, "words", "stone idol")


def test_lists_hold_per_key(policy: PromptPolicy) -> None:
    """A key that is named has its own lists; everybody else has the default."""
    assert policy.judge("ham", "free").allowed
    assert not policy.judge("气球", "free").allowed
    assert not policy.judge("ham", "another").allowed


def test_matching_follows_the_list() -> None:
    """A prefix is found at a word's beginning, a substring anywhere, a plain list not through disguises."""
    lists = {
        "p": {"match": "prefix", "terms": ["lant"]},
        "s": {"match": "substring", "terms": ["ebra"]},
        "d": {"terms": ["teapot"], "disguises": False},
    }
    policy = PromptPolicy(policy_of({"lists": lists}))
    assert policy.judge("lanterns").list_name == "p"
    assert policy.judge("slanted").allowed
    assert policy.judge("zebras").list_name == "s"
    assert policy.judge("teapot").list_name == "d"
    assert policy.judge("t3apot").allowed


def test_long_hostile_texts_take_no_time(policy: PromptPolicy) -> None:
    """Texts made to send a backtracking matcher astray end, and end in a verdict."""
    for text in (
        "(" * 20_000,
        "a:" * 10_000,
        "((a:1" * 4_000,
        "%25" * 10_000,
        "&amp;" * 10_000,
        "@!" * 9_000,
    ):
        assert policy.judge(text).allowed


def test_the_published_bars_are_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the committed inputs: 95 % of disguises caught, no written caption blocked."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import evaluate

    policy = PromptPolicy.read(FOLDER / "policy.yaml")
    terms = evaluate.read_policy(FOLDER / "policy.yaml").lists[0].terms
    shares = [evaluate.share_caught(policy, terms, name) for name in evaluate.DISGUISES]
    assert sum(shares) / len(shares) >= 0.95
    assert [line for line in evaluate.must_pass() if not policy.judge(line).allowed] == []
    for name in ("evaluate", "disguises"):
        sys.modules.pop(name)
