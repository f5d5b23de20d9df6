"""The page of a large study in a browser while a search writes: 2,000 trials x 100 parameters."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from benchmarks.dashboard import QUIET, TRIALS, draw, fill, writing
from search.dashboard import Dashboard
from search.storage import open_storage


@pytest.mark.slow
def test_the_first_page_of_a_large_study_while_a_search_writes(tmp_path: Path) -> None:
    """Its wall time is the browser's more than ours and depends on the machine: it is printed; our CPU is bounded."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path: apt-get install chromium")
    url = f"sqlite:///{tmp_path}/large.db"
    storage = open_storage(url, create=True)
    fill(storage, TRIALS)
    storage.close()
    dashboard = Dashboard(url, port=0)
    thread = threading.Thread(target=dashboard.serve)
    thread.start()
    try:
        with writing(url), sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
            try:
                page = browser.new_page()
                failed: list[str] = []
                page.on("pageerror", lambda error: failed.append(str(error)))
                page.on("response", lambda got: failed.append(f"{got.status} {got.url}") if got.status >= 400 else None)
                cpu = time.process_time()
                wall = draw(page, dashboard.address)
                print(f"drawn after {wall:.1f} s; CPU here {time.process_time() - cpu:.1f} s")
                assert time.process_time() - cpu < 5
                with page.expect_response(
                    lambda got: "after=" in got.url and "after=0" not in got.url, timeout=120_000
                ):
                    pass  # its first poll, ten seconds later
                assert failed == []
            finally:
                browser.close()
    finally:
        dashboard.stop()
        thread.join(10)
