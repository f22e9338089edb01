"""Around a drawing: cancel, reload, several at once, errors, keys, keyboard, languages, phones."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serving.conftest import Served
from serving.test_gallery import new_key

from .conftest import Visitor, until

pytestmark = pytest.mark.server

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
TWO = "document.querySelectorAll('.tile.is-working').length === 2"


def ask(page: Any, prompt: str) -> None:
    """Type and press Ctrl+Enter."""
    page.fill("#prompt", prompt)
    page.press("#prompt", "Control+Enter")


def states(served: Served) -> list[str]:
    """Of all jobs, newest first."""
    return [job["state"] for job in served.client.get("/api/v1/jobs").json()["data"]]


def stop_all(served: Served) -> None:
    """Cancel what goes on."""
    for job in served.client.get("/api/v1/jobs").json()["data"]:
        served.client.delete(f"/api/v1/jobs/{job['id']}")


def test_the_button_turns_into_cancel(obeying: Served, visit: Visitor) -> None:
    """Pressed again it cancels, for the server as well; a double click does not."""
    page = visit(obeying.url)
    page.fill("#prompt", "slow fox")
    page.dblclick("#go")
    page.wait_for_selector("#go.is-cancel")
    until(page, "/^Step \\d+ of 1,500/.test(document.querySelector('.status')?.textContent)")
    assert states(obeying) == ["running"]
    page.wait_for_timeout(800)
    page.click("#go")
    page.wait_for_selector("#go:not(.is-cancel)")
    assert states(obeying) == ["cancelled"]
    assert page.inner_text("#toast") == "Cancelled."
    assert page.locator("#tiles li").count() == 0


def test_a_preview_is_shown_while_it_is_drawn(obeying: Served, visit: Visitor) -> None:
    """The unfinished picture is on the stage and on its tile."""
    page = visit(obeying.url)
    ask(page, "slow fox")
    until(page, "document.querySelector('.stage .is-working img')?.naturalWidth === 256")
    until(page, "document.querySelector('.tile.is-working img')?.naturalWidth === 256")
    stop_all(obeying)


def test_a_reload_in_the_middle_loses_nothing(obeying: Served, visit: Visitor) -> None:
    """The same job, its steps, its preview and Cancel are there again; and the words of the form."""
    page = visit(obeying.url)
    ask(page, "slow fox")
    until(page, "/^Step/.test(document.querySelector('.status')?.textContent)")
    before = page.url
    page.fill("#prompt", "the next idea")
    page.reload()
    until(page, "/^Step/.test(document.querySelector('.status')?.textContent)")
    until(page, "document.querySelector('.stage .is-working img')?.naturalWidth === 256")
    assert page.url == before
    assert page.input_value("#prompt") == "the next idea"
    page.wait_for_selector("#go.is-cancel")
    stop_all(obeying)
    page.wait_for_selector(".welcome")


def test_several_at_once_stand_in_line(obeying: Served, visit: Visitor) -> None:
    """A second one waits with its place and an ETA, and is cancelled alone."""
    page = visit(obeying.url)
    ask(page, "brief fox")
    page.wait_for_selector(".stage .actions")
    ask(page, "slow fox")
    page.wait_for_selector("#another:visible")
    page.fill("#prompt", "slow cat")
    page.click("#another")
    until(page, TWO)
    until(page, "/^Next in line · about .* left$/.test(document.querySelector('.status')?.textContent)")
    page.click("[aria-label='Cancel: slow cat']")
    until(page, "document.querySelectorAll('.tile.is-working').length === 1")
    assert states(obeying)[:2] == ["cancelled", "running"]
    stop_all(obeying)


def test_words_without_room_have_a_way_out(obeying: Served, visit: Visitor) -> None:
    """Out of memory is told in words, and one press asks for the next smaller size of that shape."""
    page = visit(obeying.url)
    page.click("#counts label:nth-child(2)")
    ask(page, "memory")
    page.wait_for_selector(".trouble")
    assert page.inner_text(".trouble h2") == "The card has no room for that"
    ways = page.locator(".trouble button").all_inner_texts()
    assert ways == ["Try 224 × 224", "Draw one at a time", "Put away"]
    page.click("text=Try 224 × 224")
    until(page, "location.hash && document.querySelectorAll('.tile.is-failed').length === 1")
    first, second = (job["request"] for job in obeying.client.get("/api/v1/jobs").json()["data"])
    assert (first["width"], first["height"], first["n"]) == (224, 224, 2)
    assert (second["width"], second["seed"]) == (256, first["seed"])
    assert page.is_checked("#shapes input[value='own']")


def test_a_failure_is_kept_until_it_is_read(obeying: Served, visit: Visitor) -> None:
    """After a reload it still stands there, and `Put away` removes it for good."""
    page = visit(obeying.url)
    ask(page, "memory")
    page.wait_for_selector(".trouble")
    page.reload()
    page.wait_for_selector(".tile.is-failed")
    page.click(".trouble >> text=Put away")
    page.wait_for_selector(".welcome")
    page.reload()
    page.wait_for_selector(".welcome")
    assert page.locator(".tile").count() == 0


def test_a_refusal_keeps_the_words(obeying: Served, visit: Visitor) -> None:
    """What the server refuses is said in its words, and nothing that was typed is lost."""
    visit.expected.append("400 (Bad Request)")
    page = visit(obeying.url)
    page.click("#advanced > summary")
    page.fill("#guidance", "500")
    page.press("#guidance", "Tab")
    ask(page, "a fox")
    page.wait_for_selector(".trouble")
    assert "guidance_scale is 500" in page.inner_text(".trouble")
    assert page.input_value("#prompt") == "a fox"


def test_nothing_is_sent_without_words(obeying: Served, visit: Visitor) -> None:
    """An empty prompt is asked for, and the cursor put there."""
    page = visit(obeying.url)
    page.click("#go")
    assert page.inner_text("#prompt-mistake") == "Say what to draw first."
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert states(obeying) == []


def test_a_server_that_goes_away_is_told_of(obeying: Served, visit: Visitor) -> None:
    """The page says so, keeps what it shows, and offers to send again."""
    visit.expected += ["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_INCOMPLETE"]
    page = visit(obeying.url)
    ask(page, "brief fox")
    page.wait_for_selector(".stage .actions")
    obeying.kill()
    ask(page, "a second fox")
    page.wait_for_selector(".trouble")
    assert page.inner_text(".trouble h2") == "The server does not answer"
    assert page.locator(".tile img").count() == 1
    assert page.input_value("#prompt") == "a second fox"


def test_a_server_that_went_away_is_asked_in_peace(obeying: Served, visit: Visitor) -> None:
    """Its page asks again now and then, and not as fast as it is refused, though a job went on there."""
    visit.expected.append("ERR_")
    page, asked = visit(obeying.url), []
    ask(page, "slow")
    page.wait_for_selector(".is-working")
    obeying.kill()
    page.wait_for_selector('#model-dot[data-place="away"]')
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3000)
    assert 0 < len(asked) < 30


def test_delete_takes_two_presses(obeying: Served, visit: Visitor) -> None:
    """The first asks, the second erases: the tile, the file, and the next picture is shown."""
    page = visit(obeying.url)
    for prompt in ("a first fox", "a second fox"):
        ask(page, prompt)
        until(
            page,
            "words => document.querySelector('.stage figcaption .caption')?.textContent === words",
            prompt,
        )
        page.wait_for_selector(".stage .actions")
    address = page.get_attribute(".stage .frame img", "src")
    page.click(".is-grave")
    assert page.inner_text(".is-grave") == "Press again to delete"
    assert obeying.client.get(address).status_code == 200
    page.click(".is-grave")
    until(page, "document.querySelectorAll('.tile').length === 1")
    assert page.inner_text(".stage .caption") == "a first fox"
    assert obeying.client.get(address).status_code == 404


def test_search_shows_what_has_the_words(obeying: Served, visit: Visitor) -> None:
    """And everything again once the words are gone."""
    for prompt in ("a grey heron", "a fox", "two herons"):
        obeying.end(obeying.post(prompt=prompt)["id"])
    page = visit(obeying.url)
    page.fill("#search", "HERON")
    until(page, "document.querySelectorAll('.tile').length === 2")
    page.fill("#search", "zebra")
    page.wait_for_selector("text=No prompt has these words.")
    page.fill("#search", "")
    until(page, "document.querySelectorAll('.tile').length === 3")


def test_older_pictures_come_by_pages(obeying: Served, visit: Visitor) -> None:
    """More than one page of them: a button fetches the rest, each once."""
    for seed in range(45):
        obeying.end(obeying.post(seed=seed)["id"])
    page = visit(obeying.url)
    assert page.locator(".tile").count() == 40
    page.click("#more")
    until(page, "document.querySelectorAll('.tile').length === 45")
    assert page.is_hidden("#more")


def test_a_server_with_keys_asks_for_one(obeying: Served, visit: Visitor, tmp_path: Path) -> None:
    """A wrong key is told, a right one opens; it is kept over a reload and can be forgotten."""
    visit.expected.append("401 (Unauthorized)")
    header = new_key(tmp_path / "data")
    page = visit(obeying.url, ready=False)
    page.fill("#key", "sd35_wrong")
    page.click("text=Use this key")
    page.wait_for_selector("#key-mistake:visible")
    page.fill("#key", header["Authorization"].removeprefix("Bearer "))
    page.click("text=Use this key")
    page.wait_for_selector("body[data-ready]")
    ask(page, "a fox")
    page.wait_for_selector(".stage .actions")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.click("#open-key")
    page.click("text=Forget the key")
    page.wait_for_selector("#key-dialog[open]")


def test_everything_is_reached_by_keyboard(obeying: Served, visit: Visitor) -> None:
    """Tab goes through the form in order, arrows choose in it; arrows outside go through the pictures."""
    for prompt in ("a first fox", "a second fox"):
        obeying.end(obeying.post(prompt=prompt)["id"])
    page = visit(obeying.url)
    page.focus("#prompt")
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()")
        )
    assert order == ["Start from a picture…", "shapes", "counts", "qualities", "Advanced"]
    page.focus("#shapes input:checked")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("#shapes input[value='5:4']")
    assert page.evaluate("document.activeElement.value") == "5:4"
    assert page.inner_text(".stage .caption") == "a second fox"
    page.focus("#stage")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".stage .caption") == "a first fox"
    page.focus(".stage .frame")
    page.keyboard.press("Enter")
    assert page.locator("#lightbox[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#lightbox[open]").count() == 0


def test_the_page_speaks_chinese(obeying: Served, visit: Visitor) -> None:
    """By the browser's wish, or by the button; a choice is kept; nothing stays in the other language."""
    page = visit(obeying.url, locale="zh-CN")
    assert page.inner_text("#go-word") == "生成"
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#advanced > summary")
    english = [word for word in page.inner_text("#composer").split() if word.isascii() and word.isalpha()]
    assert set(english) <= {"Ctrl", "Euler", "the", "bundled", "demo", "model"}
    page.click("#language")
    until(page, "document.getElementById('go-word').textContent === 'Generate'")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#go-word") == "Generate"
    assert page.get_attribute("html", "lang") == "en"


def test_the_page_fits_a_phone(obeying: Served, visit: Visitor) -> None:
    """No sideways scrolling at 390 and at 320 pixels, Generate always in reach, fingers hit the chips."""
    obeying.end(obeying.post(prompt="a fox", width=336, height=192)["id"])
    for width in (390, 320):
        page = visit(obeying.url, **{**PHONE, "viewport": {"width": width, "height": 700}})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        box = page.locator("#go").bounding_box()
        assert box["y"] + box["height"] <= 700
        assert all(chip["height"] >= 34 for chip in boxes(page, ".chip"))
    page.fill("#prompt", "slow fox")
    page.tap("#go")
    until(page, "document.querySelector('.stage').getBoundingClientRect().top < innerHeight / 2")
    stop_all(obeying)


def test_colours_follow_the_system_until_one_is_chosen(
    obeying: Served, visit: Visitor, tmp_path: Path
) -> None:
    """Dark systems get a dark page; the button fixes light and dark, from the first paint on."""
    page = visit(obeying.url, color_scheme="dark")
    assert brightness(page, tmp_path) < 60
    page.click("#theme")
    assert brightness(page, tmp_path) > 200
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert brightness(page, tmp_path) > 200
    assert page.get_attribute("#theme", "aria-label") == "Colours: light"


def boxes(page: Any, selector: str) -> list[dict[str, float]]:
    """Where elements are."""
    return [one.bounding_box() for one in page.locator(selector).all()]


def brightness(page: Any, folder: Path) -> float:
    """Of the page's corner, 0 to 255."""
    page.screenshot(path=folder / "page.png")
    return sum(Image.open(folder / "page.png").convert("RGB").getpixel((3, 300))) / 3


def test_the_machine_is_told_in_words(obeying: Served, visit: Visitor) -> None:
    """On disk, loading with its share, in RAM, on GPU; the memory as a bar; the peak under the picture."""
    told: dict[str, Any] = {"state": "on_disk"}
    job = obeying.end(obeying.post(prompt="a fox")["id"])
    page = visit("about:blank", ready=False)
    page.route("**/api/v1/models", lambda route: answer(route, lambda body: body["data"][0].update(told)))
    memory = {"cards": 1, "used_bytes": 9_800_000_000, "total_bytes": 24_500_000_000}
    page.route("**/api/v1/stats", lambda route: answer(route, lambda body: body.update(vram=memory)))
    peak = {"peak_vram_bytes": 9_800_000_000}
    page.route("**/api/v1/jobs?*", lambda route: answer(route, lambda body: body["data"][0].update(peak)))
    page.goto(obeying.url)
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#model-state") == "on disk"
    assert page.inner_text("#vram-words") == "9.8 GB of 24.5 GB"
    share = "document.getElementById('vram-fill').offsetWidth / document.querySelector('.meter').offsetWidth"
    assert abs(page.evaluate(share) - 0.4) < 0.02
    assert "peak 9.8 GB" in page.inner_text(".facts")
    assert job["peak_vram_bytes"] is None, "this machine's own answer"
    told.update(state="loading", loading={"percent": 41, "eta_s": 5.9})
    ask(page, "slow fox")
    until(page, "document.getElementById('model-state').textContent === 'loading 41%'")
    for state, words in (("ram", "in RAM"), ("vram", "on GPU")):
        told.update(state=state)
        until(page, "words => document.getElementById('model-state').textContent === words", words)
    stop_all(obeying)


def test_a_page_that_nobody_sees_leaves_the_server_alone(obeying: Served, visit: Visitor) -> None:
    """Hidden it closes its streams and asks nothing; seen again it goes on where it was."""
    page = visit(obeying.url)
    ask(page, "slow fox")
    until(page, "/^Step/.test(document.querySelector('.status')?.textContent)")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hide(page, hidden=True)
    page.wait_for_timeout(300)
    asked.clear()
    step = page.inner_text(".status")
    page.wait_for_timeout(2500)
    assert asked == []
    assert page.inner_text(".status") == step
    hide(page, hidden=False)
    until(page, "before => document.querySelector('.status')?.textContent !== before", step)
    stop_all(obeying)


def answer(route: Any, change: Any) -> None:
    """The server's own answer, changed."""
    body = route.fetch().json()
    change(body)
    route.fulfill(json=body)


def hide(page: Any, *, hidden: bool) -> None:
    """As if another tab were in front, or not."""
    page.evaluate(
        """hidden => {
        Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
        document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )
