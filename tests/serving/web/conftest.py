"""A browser for the page: Debian's Chromium, driven by playwright, and servers to visit.

Whoever visits and leaves a message in the console has failed, unless the test said that it expects it.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serving.conftest import Served, servers

CHROMIUM = shutil.which("chromium")
DESKTOP = {"width": 1440, "height": 900}


PATIENCE_S = 60.0


def until(page: Any, expression: str, arg: Any = None) -> None:
    """Wait until JavaScript says yes; playwright's own wait evals in the page, which the policy forbids."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(50)


@dataclass
class Visitor:
    """Opens pages, each in a browser context of its own; keeps what they complain about."""

    browser: Any
    expected: list[str] = field(default_factory=list)  # parts of messages that a test provokes
    complaints: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)

    def __call__(self, url: str, *, ready: bool = True, **options: Any) -> Any:
        """The page at this address, once it shows what the server has."""
        given = {"viewport": DESKTOP, "locale": "en-US", "color_scheme": "light", **options}
        context = self.browser.new_context(**given)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(url)
        if ready:
            page.wait_for_selector("body[data-ready]")
        return page

    def _listen(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in self.expected):
            self.complaints.append(f"{message.type}: {message.text}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Visitor]:
    """Opens pages of a server; afterwards none of them may have complained."""
    visitor = Visitor(browser)
    yield visitor
    for context in visitor.contexts:
        context.close()
    assert visitor.complaints == []


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory, demo_fp8: Path) -> Iterator[Served]:
    """A server that draws with the bundled model, shared by the tests of a file."""
    with servers(tmp_path_factory.mktemp("drawing")) as start:
        yield start(engine="sd35", device="cpu")


@pytest.fixture
def obeying(tmp_path: Path) -> Iterator[Served]:
    """A server whose worker obeys prompts, for one test alone."""
    with servers(tmp_path / "data") as start:
        yield start(rough=True)
