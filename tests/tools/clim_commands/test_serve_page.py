"""The page of ``clim serve``: in a browser, on a screen and on a dark phone, and what it refuses."""

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clim_commands.main import main

for package in ("gradio", "fastapi"):
    pytest.importorskip(package, reason="pip install -r requirements-extras.txt")
httpx = pytest.importorskip("httpx")

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def site(detector, tmp_path_factory):
    """Address of ``clim serve`` with two models and a page; folder of their files and an image."""
    import uvicorn

    folder, started, run = tmp_path_factory.mktemp("site"), [], uvicorn.Server.run

    def noted(server, sockets):
        started.append((server, sockets[0].getsockname()[1]))
        run(server, sockets)

    noise = np.random.default_rng(1).integers(0, 255, (90, 140, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    files = [folder / "one.pth", folder / "two.pth"]
    for file in files:
        detector.freeze(file)
    command = ["serve", "--weights", str(files[0]), "--compare", str(files[1]), "--port", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.Server, "run", noted)
        thread = threading.Thread(target=main, args=[[*command, "--examples", str(folder)]])
        thread.start()
        while not started or not started[0][0].started:
            assert thread.is_alive()
            time.sleep(0.05)
    yield f"http://127.0.0.1:{started[0][1]}", folder
    started[0][0].should_exit = True
    thread.join(20)


def test_the_page_reads_uploaded_files_alone(site):
    """Gradio itself would read any file of the server for a page inside another application."""
    secret = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    address = secret | {"path": "http://127.0.0.1:9/a.png"}
    with httpx.Client(base_url=site[0]) as client:
        find = next(d["id"] for d in client.get("/config").json()["dependencies"] if d["api_name"] == "find")
        for image, words in [(secret, "dog"), ({"path": "/etc/hostname"}, "dog"), (address, "dog"), (None, secret)]:
            request = {"data": [image, words, 0.1, 5], "fn_index": find, "session_hash": "a"}
            client.post("/gradio_api/queue/join", json=request)
            answer = client.get("/gradio_api/queue/data", params={"session_hash": "a"}).text
            assert "uploaded files only" in answer
        assert client.get("/gradio_api/file=/etc/hostname").status_code == 403
        assert client.post("/predict", json={}).status_code == 422


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium")
def test_the_page_in_a_browser(site):
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    address, folder = site
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in [(1200, "light"), (360, "dark")]:
            page, asked = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme), []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.set_default_timeout(60_000)
            page.goto(address)
            find = page.get_by_role("button", name="Find objects")
            page.get_by_label("Words").fill("dog, <b>zebra</b>")
            find.click()
            page.wait_for_selector("text=Choose an image first")
            page.set_input_files("input[type=file]", folder / "image.png")
            page.wait_for_selector("img[src*=image]")
            find.click()
            page.wait_for_selector(".found")
            tables = page.locator(".found")
            for k in range(2):  # models
                words = tables.nth(k).locator("td:first-child").all_inner_texts()
                assert words and set(words) <= {"dog ★", "<b>zebra</b> ★"}
                drawn = page.locator(".result img").nth(k).evaluate("image => image.naturalWidth")
                assert drawn == 800
            page.get_by_label("Response map").fill("dog")
            page.get_by_role("button", name="Show the map").click()
            page.wait_for_selector("text=cosines from")
            page.get_by_label("Words").fill(" , ")
            find.click()
            page.wait_for_selector("text=there is no word")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 150) == (scheme == "dark")
            assert all(url.startswith((address, "data:", "blob:")) for url in asked)
        browser.close()
