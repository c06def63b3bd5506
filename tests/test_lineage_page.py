"""The lineage page: self-contained, safe with any file name, and alive in a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from lineage_samples import BREAKOUT, FOREIGN, many_files, write_artifacts

from xlnet_pipeline.lineage import graph, rendering

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Collects what matters: addresses, elements and the embedded data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.data = ""
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self._in_data = ("id", "data") in attributes
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action")]

    def handle_data(self, text: str) -> None:
        if self._in_data:
            self.data += text

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False


def page(tmp_path: Path, count: int = 2) -> tuple[graph.Lineage, str]:
    found = graph.collect(str(write_artifacts(tmp_path / "made", many_files(count))))
    return found, rendering.to_html(found)


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    _, text = page(tmp_path)
    assert Page(text).addresses == ["data:,"]
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(", text)
    assert "{{" not in text


def test_a_file_name_cannot_break_out(tmp_path: Path) -> None:
    found, text = page(tmp_path)
    parsed = Page(text)
    assert parsed.elements.count("script") == 2
    graph = json.loads(parsed.data)
    assert graph == json.loads(rendering.to_json(found))
    assert {BREAKOUT, FOREIGN} <= {node["uri"] for node in graph["nodes"]}
    assert BREAKOUT not in text


def test_braces_in_a_name_are_no_placeholder(tmp_path: Path) -> None:
    files = [{**many_files(1)[0], "uri": "{{script}}{{style}}.csv"}]
    text = rendering.to_html(graph.collect(str(write_artifacts(tmp_path / "made", files))))
    assert any(node["uri"] == "{{script}}{{style}}.csv" for node in json.loads(Page(text).data)["nodes"])


def rendered(tmp_path: Path, text: str, fragment: str = "") -> str:
    """The page's elements after its script ran in headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", file.as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def panel(dom: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", dom.partition("<aside")[2].partition("</aside>")[0]))


def test_browser_draws_every_node_and_shows_the_newest(tmp_path: Path) -> None:
    found, text = page(tmp_path, 300)
    dom = rendered(tmp_path, text)
    assert set(re.findall(r'data-id="([^"]+)"', dom)) == set(found.nodes)
    assert len(re.findall(r'class="edge', dom)) == len(found.edges)
    assert dom.count('tabindex="0"') == len(found.nodes)
    assert "reviews:2" in panel(dom)
    assert found.nodes[found.root].digest in panel(dom)
    assert "<title>Lineage of" in dom


def test_browser_selects_the_node_of_the_address(tmp_path: Path) -> None:
    found, text = page(tmp_path)
    (wanted,) = [node for node in found.nodes.values() if node.uri == BREAKOUT]
    dom = rendered(tmp_path, text, f"#node={wanted.id}")
    assert BREAKOUT in panel(dom)
    assert wanted.digest in panel(dom)
    assert re.search(rf'class="node kind-file[^"]*selected[^"]*"[^>]*data-id="{wanted.id}"', dom)
    assert dom.count('aria-pressed="true"') == 1
    assert "<title>broken" not in dom


def test_browser_ignores_a_strange_fragment(tmp_path: Path) -> None:
    _, text = page(tmp_path)
    assert "reviews:2" in panel(rendered(tmp_path, text, "#node=%E0%A4%A<b>"))


def test_browser_keyboard_selects(tmp_path: Path) -> None:
    found, text = page(tmp_path)
    (snapshot,) = [node for node in found.nodes.values() if node.type == "snapshot"]
    press = (
        f"""<script>document.querySelector('[data-id="{snapshot.id}"]')"""
        """.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}))</script></body>"""
    )
    dom = rendered(tmp_path, text.replace("</body>", press))
    assert snapshot.digest in panel(dom)
    assert re.search(rf'class="node kind-snapshot[^"]*selected[^"]*"[^>]*data-id="{snapshot.id}"', dom)
