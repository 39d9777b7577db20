"""The page in a browser, where there is one: its script runs, and draws what was written."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from pixvox.data.volumes.open import open_volume
from pixvox.visualization.html_page import write_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


@pytest.fixture(scope="module")
def browser():
    named = os.environ.get("PIXVOX_BROWSER")
    found = next((path for path in map(shutil.which, [named] if named else BROWSERS) if path), None)
    return found or pytest.skip("no Chromium here; PIXVOX_BROWSER names one")


def shown(browser, page, folder, place=""):
    """Open a page; return its document as the script left it."""
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=20000", "--window-size=900,700", "--dump-dom", f"{page.as_uri()}{place}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
def test_a_browser_runs_the_script_and_finds_an_object(browser, tmp_path):
    labels = np.zeros((6, 40, 50), np.uint32)
    labels[2, 10:14, 20:25], labels[4, 5:9, 5:9] = 70_000, 3
    table = [{"id": 3, "class": "cell"}, {"id": 70_000, "class": "a <b> cell"}]
    volume = open_volume(labels.astype(np.float32), axes="ZYX")
    page = write_page(volume, open_volume(labels, axes="ZYX"), table, tmp_path / "page.html")
    document = shown(browser, page, tmp_path, "#id=70000")
    assert "arrow keys or wheel" in document  # all slices were unpacked
    assert '<span id="position">z = 2</span>' in document
    assert re.search(r'<p id="pointed">id 70000, class a &lt;b&gt; cell</p>', document)
    assert "2 objects" in document and document.count("<tr data-row=") + document.count("<tr class=") >= 2


@pytest.mark.slow
def test_a_browser_shows_classes_of_an_image(browser, tmp_path):
    labels = np.zeros((30, 40), np.uint8)
    labels[5:20, 5:20] = 2
    image = open_volume(labels * 50, axes="YX")
    rows = [{"id": i, "class": name} for i, name in enumerate(("background", "road", "car"))]
    page = write_page(
        image, open_volume(labels, axes="YX"), rows, tmp_path / "page.html",
        class_names=("background", "road", "car"),
    )  # fmt: skip
    document = shown(browser, page, tmp_path)
    assert "3 classes" in document
    assert document.count('class="swatch" style="background: rgb(') == 2  # the background has no colour
