"""The report's page in a real browser: what a person does with it, and what it never does."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image as Picture
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from bulkfetch.archive import tree_at
from bulkfetch.archive.identity import archive_at
from bulkfetch.report import make_report
from bulkfetch.report.facts import facts_of
from bulkfetch.report.gather import Gathered
from bulkfetch.report.images import Image, ImageState
from bulkfetch.report.page import write_page
from bulkfetch.report.pictures import PER_SHEET
from bulkfetch.simulator import SimulatorConfig, parse_fault
from bulkfetch.status import look
from tests.conftest import download, serving, write_manifest
from tests.synthetic import add_image, make_empty

# One process has the browser, and not each of them one.
pytestmark = pytest.mark.xdist_group("browser")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Nothing of the browser's own is to be mistaken for the page's.
OPTIONS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCRIPT = "</script><script>document.title='run'</script><img src=x onerror=document.title='run'>"
MANY = 100_000


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium: .ci/run installs it")
        pytest.skip("Chromium is not installed")
    launched = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
    yield launched
    launched.close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 40 patients with some failures, and one image by somebody hostile."""
    root = tmp_path_factory.mktemp("archive")
    faults = (parse_fault("storage:404@15%"), parse_fault("images:503x1"))
    with serving(SimulatorConfig(patients=40, faults=faults)) as simulator:
        manifest = write_manifest(root / "patients.csv", list(simulator.patient_ids()))
        assert download(simulator, manifest, root / "archive").status == 1
    content = io.BytesIO()
    Picture.new("RGB", (856, 540), "teal").save(content, "JPEG")
    add_image(
        root / "archive", content.getvalue(), image_id=SCRIPT, patient_id=SCRIPT,
        display_name=SCRIPT, file_name=SCRIPT, side=SCRIPT, manifest={SCRIPT: SCRIPT},
    )  # fmt: skip
    return root / "archive"


@pytest.fixture(scope="module")
def report(archive: Path) -> Path:
    return Path(make_report(str(archive), str(archive.with_name("report.html"))))


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test if its console says a word, or it asks anything of anybody."""
    said: list[str] = []
    asked: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        made = context.new_page()
        made.on("console", lambda message: said.append(message.text))
        made.on("pageerror", lambda error: said.append(str(error)))
        context.on("request", lambda request: asked.append(request.url))
        yield made
        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def opened(page: Page, report: Path) -> Page:
    page.goto(report.as_uri())
    expect(page.locator("#count")).not_to_be_empty()
    return page


def count(page: Page, text: str) -> None:
    expect(page.locator("#count")).to_have_text(text)


def test_filters_search_and_order_say_which_images_are_shown(page: Page, report: Path) -> None:
    opened(page, report)
    total = page.evaluate("JSON.parse(document.getElementById('data').textContent).images")
    codes = {name: [total[name]["values"][c] for c in total[name]["codes"]] for name in FILTERS}
    everything = len(total["image_id"])
    for name, values in codes.items():
        for value in set(values) - {SCRIPT}:
            page.select_option(f"#{name}", json.dumps(value, ensure_ascii=False))
            number = values.count(value)
            last = min(number, 60)
            count(page, f"1 to {last} of {number} image{'' if number == 1 else 's'}")
        page.click("#show-all")
        count(page, f"1 to 60 of {everything} images")
    patient = next(p for p in total["patient_id"]["values"] if p != SCRIPT)
    page.fill("#patient", patient[:20])
    expect(page.locator(".cell")).to_have_count(
        sum(1 for c in total["patient_id"]["codes"] if total["patient_id"]["values"][c] == patient)
    )
    expect(page.locator(".who").first).to_have_text(patient)
    page.click("#show-all")
    page.fill("#search", total["image_id"][7].upper())
    count(page, "1 to 1 of 1 image")
    page.fill("#search", "nothing is like this")
    count(page, "No image is like that")
    page.click("#show-all")
    page.select_option("#order", "largest")
    page.click("#as-list")
    sizes = page.locator("#rows td:nth-child(8)")
    most = max(size for size in total["size"] if size)
    expect(sizes.first).to_have_text(f"{most / 1000:.3g} kB")
    # What is summed up is a way to it.
    page.click("button[data-column=state][data-value=failed]")
    count(page, f"1 to {codes['state'].count('failed')} of {codes['state'].count('failed')} images")


FILTERS = ("state", "status", "type", "side")


def test_pages_are_turned_and_chosen(page: Page, report: Path) -> None:
    opened(page, report)
    page.select_option("#per", "24")
    everything = page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).images.image_id.length"
    )
    pages = -(-everything // 24)
    count(page, f"1 to 24 of {everything} images")
    expect(page.locator("#previous")).to_be_disabled()
    page.click("#next")
    count(page, f"25 to 48 of {everything} images")
    page.click("#final")
    count(page, f"{24 * (pages - 1) + 1} to {everything} of {everything} images")
    expect(page.locator("#next")).to_be_disabled()
    page.fill("#page", "2")
    page.press("#page", "Enter")
    count(page, f"25 to 48 of {everything} images")
    page.fill("#page", "9999")
    page.press("#page", "Enter")
    expect(page.locator("#page")).to_have_value(str(pages))


def test_a_card_shows_the_sidecar_and_leads_to_the_file(
    page: Page, report: Path, archive: Path
) -> None:
    opened(page, report)
    page.select_option("#state", '"archived"')
    page.locator(".cell").nth(2).click()
    told = page.locator("#card-sidecar")
    expect(told).to_contain_text('"schema_version": 1')
    sidecar = json.loads(told.inner_text())
    link = page.locator("#card-file")
    expect(link).to_be_visible()
    url = page.evaluate("document.getElementById('card-file').href")
    file = Path(unquote(url.removeprefix("file://")))
    assert file.is_relative_to(archive)
    assert file.stat().st_size == sidecar["file"]["size"]
    expect(page.locator("#card-facts")).to_contain_text(sidecar["patient_id"])
    width = "document.querySelector('#card-picture img').naturalWidth"
    page.wait_for_function(f"{width} > 0")
    page.click("#card-patient")
    expect(page.locator("#card")).to_be_hidden()
    expect(page.locator("#patient")).to_have_value(sidecar["patient_id"])


def test_all_of_it_can_be_done_with_the_keyboard(page: Page, report: Path) -> None:
    opened(page, report)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.locator(".cell").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".cell").nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".cell").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#card")).to_be_visible()
    first = page.locator("#card-title").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#card-title")).not_to_have_text(first)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#card-title")).to_have_text(first)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(page.locator("#card")).to_be_hidden()
    expect(page.locator(".cell").nth(2)).to_be_focused()


@pytest.mark.parametrize("show_names", [False, True])
def test_what_a_stranger_wrote_stays_text(
    page: Page, archive: Path, tmp_path: Path, show_names: bool
) -> None:
    made = make_report(
        str(archive), str(tmp_path / "page.html"), show_names=show_names, thumbnails=0
    )
    opened(page, Path(made))
    page.fill("#patient", "</script>")
    count(page, "1 to 1 of 1 image")
    expect(page.locator(".cell .id")).to_have_text(SCRIPT)
    expect(page.locator(".cell .who")).to_have_text(SCRIPT)
    expect(page.locator(".cell .name")).to_have_count(int(show_names))
    page.locator(".cell").click()
    expect(page.locator("#card-title")).to_have_text(SCRIPT)
    expect(page.locator("#card-sidecar")).to_contain_text(json.dumps(SCRIPT))
    sidecar = json.loads(page.locator("#card-sidecar").inner_text())
    assert ("manifest" in sidecar) == show_names
    assert page.title().endswith("bulkfetch report")
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("document.scripts.length") == page.evaluate(
        "document.querySelectorAll('#data, .sidecars, .thumbnails').length + 1"
    )


def test_the_policy_lets_no_script_run_and_nothing_be_asked_for(
    browser: Browser, report: Path
) -> None:
    expected = ["img-src", "frame-src", "connect-src", "style-src-elem", "markup", "script"]
    with browser.new_context() as context:
        page = opened(context.new_page(), report)
        refused = page.evaluate(
            """async (expected) => {
              const refused = new Set();
              document.addEventListener("securitypolicyviolation",
                (event) => refused.add(event.effectiveDirective));
              for (const tag of ["img", "iframe"]) {
                const element = document.createElement(tag);
                element.src = "http://127.0.0.1:9/";
                document.body.append(element);
              }
              await fetch("http://127.0.0.1:9/").catch(() => 0);
              const style = document.createElement("style");
              style.textContent = "p { color: red }";
              document.head.append(style);
              try { document.body.innerHTML = "<b>x</b>"; } catch { refused.add("markup"); }
              try { document.createElement("script").text = "1"; } catch { refused.add("script"); }
              const until = Date.now() + 30000;
              while (expected.some((each) => !refused.has(each)) && Date.now() < until) {
                await new Promise((done) => setTimeout(done, 20));
              }
              return [...refused];
            }""",
            expected,
        )
    assert {*expected} <= {*refused}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, report: Path, scheme: str) -> None:
    with browser.new_context(color_scheme="dark" if scheme == "dark" else "light") as context:
        page = opened(context.new_page(), report)
        page.select_option("#per", "24")
        page.locator("details").first.evaluate("node => { node.open = true; }")
        assert serious(page) == []
        page.locator("#time-table").evaluate("node => { node.open = true; }")
        page.click("#as-list")
        assert serious(page) == []
        page.locator(".row-link").first.click()
        expect(page.locator("#card-sidecar")).not_to_be_empty()
        assert serious(page) == []


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['html'] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", [375, 900, 1440])
def test_nothing_is_wider_than_the_window(page: Page, report: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    opened(page, report)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.click("#as-list")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_folder_of_thumbnails_is_looked_into_when_it_is_needed(
    page: Page, archive: Path, tmp_path: Path
) -> None:
    made = make_report(str(archive), str(tmp_path / "page.html"), folder=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, Path(made))
    page.locator(".cell img").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.cell img').naturalWidth > 0")
    sheets = {url.rpartition("/")[2] for url in asked if url.endswith(".webp")}
    assert any(sheet.endswith("-000000.webp") for sheet in sheets)
    assert len(sheets) < len(list((tmp_path / "page.html-thumbnails").iterdir()))


def test_a_printed_page_has_the_sums_and_no_buttons(page: Page, report: Path) -> None:
    opened(page, report)
    page.emulate_media(media="print", color_scheme="dark")
    for hidden in (".sections", "#tools", "#pager", ".views"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.locator("#last-title")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")


def test_100_000_images_open_in_3_seconds_and_are_filtered_at_once(
    page: Page, tmp_path: Path
) -> None:
    report = many(tmp_path)
    began = time.monotonic()
    page.goto(report.as_uri(), wait_until="commit")
    count(page, f"1 to 60 of {MANY:,} images")
    took_s = time.monotonic() - began
    assert took_s < 3, took_s
    expect(page.locator(".cell")).to_have_count(60)
    page.click("#final")
    count(page, f"{MANY - 39:,} to {MANY:,} of {MANY:,} images")
    page.fill("#search", f"{MANY - 1:012}")
    count(page, "1 to 1 of 1 image")
    page.locator(".cell").click()
    expect(page.locator("#card-sidecar")).to_contain_text(f"{MANY - 1:012}")


def many(root: Path) -> Path:
    """A page of so many images, as they are gathered from an archive, and of 2,000 thumbnails."""
    sheet = io.BytesIO()
    Picture.effect_noise((8 * 224, 6 * 141), 40).convert("RGB").save(sheet, "WEBP", quality=60)
    tree = tree_at(str(make_empty(root / "archive")))
    with Gathered() as gathered, (root / "many.html").open("wb") as file:
        gathered.add(map(image, range(MANY)))
        gathered.settle()
        for number, (path, _, _) in enumerate(gathered.with_files(2_000)):
            gathered.note_thumbnails([(number, path)])
        for number in range(-(-2_000 // PER_SHEET)):
            gathered.add_sheet(number, sheet.getvalue())
        facts = facts_of(
            tree, archive_at(tree), gathered, status=look(tree.name), runs=[], notices=[]
        )
        write_page(
            file, facts, gathered, [], show_names=False, folder=None, archive=None
        )  # fmt: skip
    return root / "many.html"


def image(number: int) -> Image:
    patient_id = f"861fc050-135e-442d-847c-{number // 3:012}"
    image_id = f"5e053a6f-183f-40de-9760-{number:012}"
    return Image(
        path=f"{patient_id}/{image_id}.v1",
        image_id=image_id,
        patient_id=patient_id,
        coverage_id=f"051a4f94-7c11-4147-9cd1-{number // 2:012}",
        version=1 + number % 4,
        status="UPLOADED",
        side=("FRONT", "BACK", None)[number % 3],
        type=("image/jpeg", "image/png")[number % 2],
        state=ImageState.archived,
        size=20_000 + number,
        at="2026-02-03T04:05:06+00:00",
        run_id="20260203T040500Z-abcdef",
        file=f"{image_id}.v1.jpg",
        sidecar=json.dumps({"image_id": image_id, "sha256": os.urandom(32).hex(), "x": "y" * 500}),
    )
