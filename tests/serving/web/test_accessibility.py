"""axe-core, the accessibility checker, finds nothing serious in any state of the page."""

from importlib.resources import files
from typing import Any

import pytest

from serving.conftest import Served

from .conftest import Visitor, until
from .test_living_with_it import PHONE, ask, stop_all
from .test_starting_from_a_picture import choose, png

pytestmark = pytest.mark.server

GRAVE = {"serious", "critical"}


def findings(page: Any) -> list[tuple[str, list[str]]]:
    """Rules that are broken seriously, with where."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    result = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    assert result["passes"], "axe looked at nothing"
    return [
        (rule["id"], [node["target"][0] for node in rule["nodes"]])
        for rule in result["violations"]
        if rule["impact"] in GRAVE
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE, {"locale": "zh-CN"}], ids=["desktop", "phone", "chinese"])
def test_no_state_of_the_page_shuts_anyone_out(
    obeying: Served, visit: Visitor, scheme: str, options: dict[str, Any]
) -> None:
    """Empty, drawing, done with all its parameters, compared, failed: no serious finding."""
    page = visit(obeying.url, bypass_csp=True, reduced_motion="reduce", color_scheme=scheme, **options)
    page.click("#advanced > summary")
    assert findings(page) == []
    choose(page, png(96, 48, "teal"))
    page.wait_for_selector("#start-picture:visible")
    assert findings(page) == []
    page.click("#start-remove")
    ask(page, "slow fox")
    until(page, "document.querySelector('.stage .is-working img')?.naturalWidth === 256")
    assert findings(page) == []
    stop_all(obeying)
    page.fill("#seed", "1")
    ask(page, "a fox")
    page.wait_for_selector(".stage .actions")
    page.click(".parameters summary")
    assert findings(page) == []
    ask(page, "a cat")
    until(page, "document.querySelectorAll('.tile img').length === 2")
    page.wait_for_selector(".stage .actions")
    page.click(".stage .actions button:nth-child(3)")
    page.wait_for_selector(".comparison")
    assert findings(page) == []
    page.click(".comparison > .secondary")
    ask(page, "memory")
    page.wait_for_selector(".trouble")
    assert findings(page) == []


def test_axe_would_notice(obeying: Served, visit: Visitor) -> None:
    """A picture without words is found: the check above can fail."""
    page = visit(obeying.url, bypass_csp=True)
    page.evaluate("document.querySelector('main').append(document.createElement('img'))")
    assert ("image-alt", ["main > img"]) in findings(page)
