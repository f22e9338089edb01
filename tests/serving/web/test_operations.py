"""The operations page: what it shows is what the routes tell, and its buttons do what they say."""

from pathlib import Path
from typing import Any

import pytest

from sd35.serving.keys import KeyStore
from serving.conftest import Served
from serving.test_gallery import new_key

from .conftest import Visitor, until
from .test_accessibility import findings
from .test_living_with_it import PHONE, stop_all

pytestmark = pytest.mark.server


def figures(page: Any) -> dict[str, str]:
    """Words under a figure -> the figure."""
    items = page.locator("#figures li").all()
    return {item.locator("span").inner_text(): item.locator("strong").inner_text() for item in items}


def test_it_shows_how_the_server_stands(obeying: Served, visit: Visitor) -> None:
    """Ends, failures and the queue, as they are; cancel and retry do both."""
    for prompt in ("brief fox", "brief fox", "brief fox", "memory"):
        obeying.end(obeying.post(prompt=prompt, seed=5)["id"])
    running, waiting = obeying.post(prompt="slow fox"), obeying.post(prompt="slow cat")
    page = visit(f"{obeying.url}/ops")
    until(page, "/^Step/.test(document.querySelector('#queue li:first-child .note').textContent)")
    shown = figures(page)
    assert (shown["waiting"], shown["being drawn"], shown["failed"]) == ("1", "1", "25.0%")
    assert page.locator("#queue .name").all_inner_texts() == ["slow fox", "slow cat"]
    assert "The device has no room." in page.inner_text("#failures")
    assert page.locator(".chart").count() == 4
    assert page.locator("rect.bar-good").count() == page.locator("rect.bar-bad").count() == 24
    page.click("#queue li:last-child button")
    until(page, "document.querySelectorAll('#queue li button').length === 1")
    assert obeying.job(waiting["id"])["state"] == "cancelled"
    assert obeying.job(running["id"])["state"] == "running"
    page.click("#failures button")
    until(page, "document.querySelectorAll('#queue li button').length === 2")
    again = obeying.client.get("/api/v1/jobs?limit=1").json()["data"][0]
    assert (again["request"]["prompt"], again["request"]["seed"]) == ("memory", 5)
    stop_all(obeying)


def test_an_admin_sees_and_stops_what_others_asked_for(
    obeying: Served, visit: Visitor, tmp_path: Path
) -> None:
    """With an admin's key the queue is everyone's; with another's it is its own."""
    visit.expected.append("401 (Unauthorized)")
    owner, stranger = new_key(tmp_path / "data"), new_key(tmp_path / "data")
    keys = KeyStore(tmp_path / "data")
    admin = keys.add("admin", scopes=("admin",))[1]
    keys.close()
    obeying.client.headers.update(owner)
    job = obeying.post(prompt="slow fox")
    page = visit(f"{obeying.url}/ops", ready=False)
    page.wait_for_selector("#trouble:visible")
    assert "asks for a key" in page.inner_text("#trouble")
    for key, seen in ((stranger["Authorization"].removeprefix("Bearer "), 0), (admin, 1)):
        page.evaluate("key => localStorage.setItem('sd35.key', JSON.stringify(key))", key)
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert page.locator("#queue button").count() == seen
    page.click("#queue button")
    until(page, "document.querySelectorAll('#queue button').length === 0")
    assert obeying.job(job["id"])["state"] == "cancelled"


def test_its_switches_do_what_they_say(obeying: Served, visit: Visitor) -> None:
    """Paused, a job waits until work is resumed; a model is loaded and unloaded; drain ends the server."""
    visit.expected += ["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "503"]
    page = visit(f"{obeying.url}/ops")
    page.click("text=Pause")
    page.wait_for_selector("text=Resume")
    job = obeying.post(prompt="a fox")
    page.wait_for_timeout(500)
    assert obeying.job(job["id"])["state"] == "queued"
    page.click("text=Resume")
    assert obeying.end(job["id"])["state"] == "succeeded"
    page.click("#models >> text=Unload")
    until(page, "document.querySelector('#models .note').textContent.endsWith('on disk')")
    page.click("#models >> text=Load")
    until(page, "document.querySelector('#models .note').textContent.endsWith('ready')")
    page.click("text=Drain and stop")
    assert obeying.process.poll() is None, "the first press only asks"
    page.click("text=press again")
    assert obeying.process.wait(30) == 0


@pytest.mark.parametrize("options", [{}, {**PHONE, "color_scheme": "dark"}, {"locale": "zh-CN"}])
def test_it_shuts_nobody_out(obeying: Served, visit: Visitor, options: dict[str, Any]) -> None:
    """No serious finding of axe with everything on it, and no sideways scrolling on a phone."""
    for prompt in ("brief fox", "memory"):
        obeying.end(obeying.post(prompt=prompt)["id"])
    obeying.post(prompt="slow fox")
    page = visit(f"{obeying.url}/ops", bypass_csp=True, **options)
    assert findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    stop_all(obeying)
