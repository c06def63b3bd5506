"""The pages of ``xlnet-pipeline ui`` in headless Chromium: a run watched to its end, and what people do with it."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import write_sentences

from xlnet_pipeline.targets import schedules
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.submission import Submission
from xlnet_pipeline.ui import server
from xlnet_pipeline.ui.application import application
from xlnet_pipeline.ui.site import Site
from xlnet_pipeline.ui.worker import Worker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("no chromium here: apt-get install chromium", allow_module_level=True)
api = pytest.importorskip("playwright.sync_api")
api.expect.set_options(timeout=60_000)

SETTINGS = ("model.n_layer=1", "model.d_model=32", "model.n_head=2", "model.d_head=16", "model.d_inner=64")
RUN = ("training.batch_tokens=512", "training.learning_rate=0.003", "evaluation.resamples=100", "data.max_length=32")


def command(home: Path, data: Path, *more: str) -> list[str]:
    words = [f"data.train={data}", 'data.text="text"', 'data.label="label"', 'registry.name="reviews"', *SETTINGS, *RUN]
    settings = [part for word in (*words, *more) for part in ("--set", word)]
    return [sys.executable, "-m", "xlnet_pipeline", "--home", str(home), "run", "--no-check", *settings]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_sentences(folder / "sentences.csv")
    return folder


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A server over an empty state directory."""
    opened = server.listen("127.0.0.1", 0)
    config = uvicorn.Config(application(Site(place / "home", worker=Worker(inline=True))), log_level="warning")
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [opened]})
    thread.start()
    yield server.address("127.0.0.1", opened)
    serving.should_exit = True
    thread.join(10)
    opened.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Seen:
    """What a page did that it must not do: messages on the console, and requests to other hosts."""

    def __init__(self, page: Any, address: str) -> None:
        self.wrong: list[str] = []
        page.on("console", lambda one: self.wrong.append(f"{one.type}: {one.text}") if one.type == "error" else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda one: self._ask(one.url, address))

    def _ask(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"a request to {url}")


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    opened = context.new_page()
    seen = Seen(opened, address)
    yield opened
    context.close()
    assert not seen.wrong


@pytest.fixture(scope="module")
def watched(chromium: Any, address: str, place: Path) -> list[str]:
    """Open the empty list, start a run from the command line, and follow it to its end; returns what was seen.

    A second, shorter run is started once the first one is seen, and both go on together.
    """
    context = chromium.new_context()
    context.set_default_timeout(90_000)
    told = []
    page = context.new_page()
    seen = Seen(page, address)
    page.goto(f"{address}/runs")
    told.append(page.locator(".empty").inner_text())
    running = subprocess.Popen(command(place / "home", place / "sentences.csv", "training.epochs=15"))
    page.wait_for_selector("tr.running a")  # the list shows it without a reload
    page.click("tr.running a")
    page.wait_for_selector("td .status-running")
    told.append(page.url)
    beside = subprocess.Popen(command(place / "home", place / "sentences.csv", "training.epochs=2"))
    other = context.new_page()
    other_seen = Seen(other, address)
    other.goto(f"{page.url}/metrics")
    page.wait_for_selector(".node.status-succeeded")
    other.wait_for_selector(".chart canvas")  # curves while the training goes on
    page.wait_for_selector("tr:last-child td .status-succeeded")  # the panel, without a reload
    told.append(page.locator("#panel").inner_text())
    assert running.wait(30) == 0
    assert beside.wait(120) == 0
    context.close()
    assert not seen.wrong
    assert not other_seen.wrong
    return told


def test_a_run_is_watched_from_an_empty_list_to_its_end(watched: list[str]) -> None:
    assert "xlnet-pipeline run" in watched[0]
    assert "/runs/2" in watched[1]
    assert "first time" in watched[2]


def test_runs_are_filtered_while_typing(watched: list[str], page: Any, address: str) -> None:
    page.goto(f"{address}/runs")
    assert page.locator("table.runs tbody tr").count() == 2
    page.fill("input[name=search]", "nothing like it")
    page.wait_for_selector("text=No run matches")
    assert "search=nothing" in page.url
    page.fill("input[name=search]", watched[1].rpartition("/")[2])
    api.expect(page.locator("table.runs tbody tr")).to_have_count(1)


def test_two_runs_are_compared(watched: list[str], page: Any, address: str) -> None:
    page.goto(f"{address}/runs")
    assert page.locator("#compare-button").is_disabled()
    for box in page.locator("input[name=run]").all():
        box.check()
    page.click("#compare-button")
    page.wait_for_selector("text=training.epochs")
    page.wait_for_selector(".chart canvas")


def test_from_a_model_to_a_file_and_back(watched: list[str], page: Any, address: str) -> None:
    page.goto(f"{address}/models/reviews/1")
    page.click("dd a[href^='/lineage/model-']")
    page.click("svg.graph .node.file")
    api.expect(page.locator("#facts")).to_contain_text("sentences.csv")
    page.click("text=The graph around this file")
    api.expect(page.locator("svg.graph .node.model")).to_have_count(2)


def test_promote_and_roll_back(watched: list[str], page: Any, address: str) -> None:
    page.goto(f"{address}/models/reviews")
    other = page.locator("tr", has=page.locator("button:text('Promote')"))
    number = other.locator("th").inner_text()
    other.locator("button").click()
    api.expect(page.locator(".said")).to_contain_text(f"reviews:{number} is now the champion")
    page.click("button:has-text('Roll back')")
    api.expect(page.locator(".said")).to_contain_text("is the champion again")


def test_a_text_is_tried(watched: list[str], page: Any, address: str) -> None:
    page.goto(f"{address}/models/reviews/champion")
    page.fill("textarea", "</textarea><script>alert(1)</script> a lovely \u202ewarm film")
    page.click("text=Ask the model")
    assert "Which words mattered" in page.locator("#answer").inner_text()
    assert page.locator("#answer script").count() == 0


def test_a_schedule_is_paused_and_resumed(place: Path, watched: list[str], page: Any, address: str) -> None:
    target = LocalTarget(place / "home")
    from xlnet import recipe as recipes

    target.schedules().create("nightly", schedules.timing("0 3 * * *", "UTC"), Submission(recipes.tiny()))
    page.goto(f"{address}/schedules")
    page.click("text=Pause")
    page.wait_for_selector(".status-paused")
    page.click("text=Resume")
    page.wait_for_selector(".status-active")


def test_the_same_without_scripts(watched: list[str], chromium: Any, address: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/runs")
    page.fill("input[name=search]", "nothing like it")
    page.click("text=Filter")
    assert "No run matches" in page.content()
    page.goto(f"{address}/runs")
    for box in page.locator("input[name=run]").all():
        box.check()
    page.click("#compare-button")
    assert "training.epochs" in page.content()
    page.goto(f"{address}/runs/latest/metrics")
    assert page.locator(".chart svg").count() >= 3
    page.goto(f"{address}/models/reviews/1")
    page.fill("textarea", "a lovely warm film")
    page.click("text=Ask the model")
    assert "Which words mattered" in page.content()
    context.close()


PAGES = [
    "/runs", "/runs/latest", "/runs/latest/log", "/runs/latest/metrics", "/runs/latest/evaluation",
    "/runs/latest/lineage", "/models", "/models/reviews", "/models/reviews/1", "/data", "/lineage", "/schedules",
    "/api", "/nothing",
]  # fmt: skip


def concrete(page: Any, address: str) -> list[str]:
    """Addresses of pages about one thing each: a comparison, an artifact of each type, a dataset."""
    runs = [run["id"] for run in page.request.get(f"{address}/api/runs").json()]
    nodes = {node["type"]: node["id"] for node in page.request.get(f"{address}/api/lineage").json()["nodes"]}
    assert {"file", "model", "dataset"} <= nodes.keys()
    found = [f"/compare?run={runs[0]}&run={runs[1]}", f"/data/{nodes['dataset']}", f"/lineage/{nodes['file']}"]
    return [*found, f"/lineage/{nodes['model']}?node={nodes['dataset']}&verify=1"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible_and_fit(watched: list[str], chromium: Any, address: str, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = chromium.new_context(color_scheme=theme, viewport={"width": 390, "height": 844})
    page = context.new_page()
    seen = Seen(page, address)
    found = {}
    for path in [*concrete(page, address), *PAGES]:
        page.goto(address + path)
        page.wait_for_timeout(250)
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            found[f"{path} is wider than a phone"] = [""]
        page.set_viewport_size({"width": 1280, "height": 900})
        violations = axe.run(page).response["violations"]
        serious = [one for one in violations if one["impact"] in ("serious", "critical")]
        for one in serious:
            found[f"{path}: {one['id']}"] = [node["html"][:200] for node in one["nodes"][:3]]
        page.set_viewport_size({"width": 1920, "height": 1080})
        if page.evaluate("document.documentElement.scrollWidth") > 1920:
            found[f"{path} is wider than a wide screen"] = [""]
        page.set_viewport_size({"width": 390, "height": 844})
    context.close()
    assert not found
    assert all("404" in one for one in seen.wrong), seen.wrong  # the last page, which does not exist
    assert len(seen.wrong) <= 1
