"""The page in a real browser: a dropped picture gets boxes and masks, a bad file is said."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from d2det.structures import Detections
from d2det_ops import masks_to_rle
from d2det_platform.serve.local import free_port
from d2det_platform.serve.model import ModelInfo
from tests.platform.serve.endpoint import CATEGORIES, listening, serving

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--window-size=1280,860",
]


def discs(images: list[np.ndarray]) -> list[Detections]:
    """A model with masks: a ship and a plane, each a disc in its box."""
    return [_disc_detections(image.shape[0], image.shape[1]) for image in images]


def _disc_detections(height: int, width: int) -> Detections:
    boxes = torch.tensor(
        [
            [0.1 * width, 0.15 * height, 0.45 * width, 0.6 * height],
            [0.5 * width, 0.4 * height, 0.9 * width, 0.9 * height],
        ]
    )
    grid = torch.linspace(-1, 1, 28)
    disc = ((grid[:, None] ** 2 + grid**2) < 1).float()
    masks = masks_to_rle(torch.stack([disc, disc]), boxes, height=height, width=width)
    return Detections(
        boxes=boxes,
        scores=torch.tensor([0.91, 0.42]),
        labels=torch.tensor([0, 1]),
        size=(height, width),
        masks=tuple(masks),
        mask_scores=torch.tensor([1.1, 0.6]),
    )


discs.categories = CATEGORIES  # type: ignore[attr-defined]
discs.has_masks = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The endpoint on a port of its own."""
    with listening(discs, info=ModelInfo("d2det", CATEGORIES, "discs", has_masks=True)) as found:
        yield found


class Browser:
    """A headless browser by the WebDriver protocol, as far as this test needs it."""

    def __init__(self, port: int, folder: Path) -> None:
        self._base = f"http://127.0.0.1:{port}"
        chosen = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={folder}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": chosen}
        wanted["goog:loggingPrefs"] = {"browser": "ALL"}
        made = self._ask("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def open(self, url: str) -> None:
        self._ask(f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        body = {"script": script, "args": list(arguments)}
        return self._ask(f"{self._session}/execute/sync", body)

    def until(self, script: str, seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(f"return {script}"):
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}\n{self.run('return document.body.innerText')}")

    def keys(self, text: str) -> None:
        actions = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self._ask(
            f"{self._session}/actions",
            {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]},
        )

    def screenshot(self) -> bytes:
        return base64.b64decode(self._ask(f"{self._session}/screenshot", None))

    def console(self) -> list[dict]:
        return self._ask(f"{self._session}/se/log", {"type": "browser"})

    def quit(self) -> None:
        self._ask(self._session, None, method="DELETE")

    def _ask(self, path: str, body: Any, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    port = free_port()
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(tmp_path_factory.mktemp("home"))},
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        made = Browser(port, tmp_path_factory.mktemp("profile"))
        yield made
        made.quit()
    finally:
        driver.terminate()
        driver.wait(20)


DROP = """
const [name, type, text] = arguments;
const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name, { type }));
document.getElementById("stage").dispatchEvent(
  new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data }));
"""


def drop(browser: Browser, name: str, kind: str, data: bytes) -> None:
    browser.run(DROP, name, kind, base64.b64encode(data).decode())


def scenery() -> bytes:
    """A picture of plain colour, so that whatever else is on the canvas was drawn."""
    pixels = np.full((480, 640, 3), (90, 110, 60), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_a_dropped_picture_shows_boxes_masks_times_and_a_list(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    browser.open(address)
    browser.until("document.getElementById('model').textContent.includes('discs')")
    drop(browser, "scenery.png", "image/png", scenery())
    browser.until("document.getElementById('title').textContent === '2 objects'")
    pixel = (
        "return Array.from(document.getElementById('canvas').getContext('2d')"
        ".getImageData(arguments[0], arguments[1], 1, 1).data)"
    )
    plain = browser.run(pixel, 5, 470)
    assert plain[:3] == [60, 110, 90]
    assert browser.run(pixel, 64, 180) != plain  # the left edge of the ship's box
    assert browser.run(pixel, 176, 180) != plain  # inside its mask
    assert browser.run(pixel, 70, 280) == plain  # in its box, beside its mask
    names = browser.run("return document.getElementById('found').innerText")
    assert "ship" in names
    assert "0.910" in names
    assert "ms" in browser.run("return document.getElementById('times').innerText")
    label = browser.run("return document.getElementById('canvas').getAttribute('aria-label')")
    assert label == "scenery.png: 2 objects are drawn"
    shot = Path(os.environ.get("D2DET_SCREENSHOTS", tmp_path)) / "page.png"
    shot.write_bytes(browser.screenshot())
    assert [entry for entry in browser.console() if entry["level"] == "SEVERE"] == []


def test_the_threshold_and_the_classes_filter_without_asking_again(
    browser: Browser, address: str
) -> None:
    browser.open(address)
    drop(browser, "scenery.png", "image/png", scenery())
    browser.until("document.getElementById('title').textContent === '2 objects'")
    browser.run(
        "const t = document.getElementById('threshold'); t.value = 0.5;"
        "t.dispatchEvent(new Event('input'))"
    )
    assert browser.run("return document.getElementById('title').textContent") == "1 object"
    browser.run("document.querySelector('#classes input').click()")
    label = browser.run("return document.getElementById('canvas').getAttribute('aria-label')")
    assert label == "scenery.png: 0 objects are drawn"


def test_a_bad_file_is_said_in_words_and_the_next_good_one_works(
    browser: Browser, address: str
) -> None:
    browser.open(address)
    drop(browser, "notes.txt", "text/plain", b"hello")
    text = browser.until("document.getElementById('problem').textContent")
    assert text.startswith("notes.txt: ")
    assert "is not read" in text
    drop(browser, "half.png", "image/png", scenery()[:-40])
    browser.until("document.getElementById('problem').textContent.includes('ends early')")
    drop(browser, "scenery.png", "image/png", scenery())
    browser.until("document.getElementById('title').textContent === '2 objects'")
    assert browser.run("return document.getElementById('problem').hidden")


def test_everything_is_reached_by_keyboard(browser: Browser, address: str) -> None:
    browser.open(address)
    drop(browser, "scenery.png", "image/png", scenery())
    browser.until("document.getElementById('title').textContent === '2 objects'")
    reached = []
    for _ in range(14):
        browser.keys("\ue004")
        reached.append(
            browser.run("const e = document.activeElement; return e.id || e.innerText || e.type")
        )
    assert {"file", "save", "threshold", "masks", "names", "tiled"} <= set(reached)
    assert any("ship" in name for name in reached)


def test_the_page_asks_nobody_else_and_runs_its_own_script_alone() -> None:
    async def check() -> None:
        async with serving() as http:
            answer = await http.get("/")
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            urls = [part.split('"')[0] for part in answer.text.split('src="')[1:]]
            assert urls == []
            links = [part.split('"')[0] for part in answer.text.split('href="')[1:]]
            assert links == ["data:,"]

    asyncio.run(check())
