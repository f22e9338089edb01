"""The page's files: how they go out, and what is in them."""

import json
import re
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from sd35.serving.page import FOLDER, policy, read_assets

from .conftest import Served

TEXTS = {name: asset.content.decode() for name, asset in read_assets().items()}
LOCALES = {name: json.loads(text) for name, text in TEXTS.items() if name.startswith("locales/")}
PAGES = [text for name, text in TEXTS.items() if name.endswith(".html")]
ENGLISH = LOCALES["locales/en.json"]


def test_every_file_goes_out_with_the_policy(served: Served) -> None:
    """The page and all that it is made of: right type, strict policy, an ETag, and HEAD as GET."""
    for name in ("", "ops", *(f"web/{name}" for name in TEXTS)):
        answer = served.client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-cache"
        head = served.client.head(f"/{name}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["etag"] == answer.headers["etag"]
        assert head.headers["content-length"] == str(len(answer.content))
    assert served.client.get("/web/main.js").headers["content-type"].startswith("text/javascript")


def test_a_copy_that_is_current_is_not_sent_again(served: Served) -> None:
    """304 for our own ETag, among others and weak as well; the whole file for another."""
    etag = served.client.get("/").headers["etag"]
    for sent in (etag, f'"other", W/{etag}', "*"):
        assert served.client.get("/", headers={"If-None-Match": sent}).status_code == 304
    assert served.client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["nothing.js", "../page.py", "%2e%2e/page.py", "locales"])
def test_nothing_else_is_served(served: Served, path: str) -> None:
    """What is no file of the page is not found."""
    answer = served.client.get(f"/web/{path}")
    assert answer.status_code == 404


def test_the_page_is_light_and_whole() -> None:
    """Under 200 kB together, and every file in the folder is one that is served."""
    assert sum(len(text.encode()) for text in TEXTS.values()) < 200_000
    assert {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()} == set(TEXTS)


def test_nothing_comes_from_elsewhere() -> None:
    """No address of another host but the names of standards, no inline script, style or listener."""
    for name, text in TEXTS.items():
        hosts = {urlsplit(address).netloc for address in re.findall(r"https?://[^\s\"'`<)]+", text)}
        assert hosts <= {"www.w3.org"}, name
    for page in PAGES:
        assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:", page)
        assert all(inner == "" for inner in re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL))


@pytest.mark.parametrize("name", LOCALES)
def test_languages_say_the_same_things(name: str) -> None:
    """Equal names and equal gaps in every language."""
    words = LOCALES[name]
    assert set(words) == set(ENGLISH)
    gaps = {key: set(re.findall(r"\{(\w+)\}", sentence)) for key, sentence in words.items()}
    assert gaps == {key: set(re.findall(r"\{(\w+)\}", sentence)) for key, sentence in ENGLISH.items()}


def test_every_word_of_the_page_is_known() -> None:
    """Names in `data-i18n…` and in t("…") have a sentence; no sentence is left without a use."""
    html = set(re.findall(r'data-i18n(?:-\w+)?="([^"]+)"', "".join(PAGES)))
    code = "".join(text for name, text in TEXTS.items() if name.endswith(".js"))
    assert html | set(re.findall(r'\bt\("([^"]+)"', code)) <= set(ENGLISH)
    prefixes = set(re.findall(r"`([\w.]+\.)\$\{", code))
    assert "problem." in prefixes
    quoted = set(re.findall(r'"([\w.-]+)"', code)) | set(re.findall(r"\b(\w+):", code))
    unused = {key for key in ENGLISH if key not in html | quoted and not key.startswith(tuple(prefixes))}
    assert not unused


def test_pictures_may_come_from_where_they_are_kept() -> None:
    """The policy names an object store's origin and the server's public one, and no more."""
    storage = SimpleNamespace(url=lambda name, _: f"https://bucket.example:9000/{name}?signed")
    gateway = SimpleNamespace(
        service=SimpleNamespace(storage=storage),
        settings=SimpleNamespace(public_url="https://draw.example/sd"),
    )
    images = re.search(r"img-src ([^;]*)", policy(gateway)).group(1)
    assert images == "'self' blob: data: https://bucket.example:9000 https://draw.example"
