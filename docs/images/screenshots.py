"""Make the pictures at the top of the README from real runs.

python docs/images/screenshots.py STATE_DIRECTORY    # one in which `xlnet-pipeline run` has run three times, changed
"""

import shutil
import sys
import threading
from pathlib import Path

import uvicorn
from playwright.sync_api import sync_playwright

from xlnet_pipeline.lineage.world import Known
from xlnet_pipeline.ui import server
from xlnet_pipeline.ui.application import application
from xlnet_pipeline.ui.site import Site

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1280, 560


def main(home: str) -> None:
    """Open each page and keep what it shows."""
    site = Site(home)
    opened = server.listen("127.0.0.1", 0)
    serving = uvicorn.Server(uvicorn.Config(application(site), log_level="warning"))
    threading.Thread(target=serving.run, kwargs={"sockets": [opened]}, daemon=True).start()
    address = server.address("127.0.0.1", opened)
    runs = [row.id for row in site.rows() if row.value is not None][:3]
    dataset = next(node.id for node in _world(site) if node.type == "snapshot")
    pages = {
        "ui-runs": "/runs",
        "ui-compare": "/compare?" + "&".join(f"run={run}" for run in reversed(runs)),
        "ui-lineage": f"/lineage/{dataset}",
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light").new_page()
        for name, path in pages.items():
            page.goto(address + path)
            page.wait_for_timeout(800)
            page.screenshot(path=HERE / f"{name}.png")
        browser.close()
    serving.should_exit = True
    site.worker.stop()


def _world(site: Site) -> list[Known]:
    from xlnet_pipeline.ui.lineage import world

    return list(world(site).nodes.values())


if __name__ == "__main__":
    main(sys.argv[1])
