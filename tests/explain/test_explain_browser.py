"""The page of `gdr explain` in a real browser: runs where Chromium is installed, and drives it over a pipe."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.config.load import load_config
from gdr_plugin.explain.explain import explain

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None or sys.platform == "win32", reason="needs Chromium (Debian: apt-get install chromium)"
)
KEYS = {"Tab": 9, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}
CONFIG = """
strong: "fake:a"
weak: "fake:b"
guidance: {domains: {chat: none, safety: safety}}
routing: {routers: [field], default_domain: chat}
"""
TEXT = "<script>document.title = 'hacked'</script> One two three.\n" * 4


class Browser:
    """Headless Chromium on its debugging pipe: JSON messages that end with a zero byte, on descriptors 3 and 4."""

    def __init__(self, folder: Path) -> None:
        assert BROWSER is not None
        down, self._write = os.pipe()
        self._read, up = os.pipe()
        # The shell puts the pipe's ends where Chromium expects them.
        command = f'exec "$0" "$@" 3<&{down} 4>&{up}'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--window-size=1200,900", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(["bash", "-c", command, BROWSER, *options], pass_fds=(down, up), **quiet)
        os.close(down)
        os.close(up)
        self._number, self._buffer, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {} if self._session is None else {"sessionId": self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=KEYS[name])

    def close(self) -> None:
        os.close(self._write)  # Chromium ends when nobody can talk to it any more
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser is gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def test_page_in_a_browser(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gdr.yaml").write_text(CONFIG)
    rows = [{"id": "a", "domain": "safety", "prompt": "p", "chosen": TEXT, "rejected": "أنا بخير"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (shown,) = explain("rows.jsonl", load_config("gdr.yaml"), Path("page.html"))
    browser.open(tmp_path / "page.html")

    # Nothing but the page itself is loaded, nothing fails, and nothing of a response runs.
    asked = [one["params"]["request"]["url"] for one in browser.events if one["method"] == "Network.requestWillBeSent"]
    assert asked == [(tmp_path / "page.html").as_uri()]
    wrong = ("Runtime.exceptionThrown", "Log.entryAdded")
    assert [one for one in browser.events if one["method"] in wrong] == []
    assert browser.run("document.title") == "Where the reward comes from: rows.jsonl"
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\">')")
    assert browser.run("document.title") != "1"

    # One stop of the tab key for each response's tokens; arrow keys go from token to token and say the values.
    browser.run("document.querySelector('.panel .t').focus()")
    active = "document.activeElement"
    browser.key("ArrowRight")
    assert browser.run(f"[...{active}.parentNode.children].indexOf({active})") == 1
    (first, *_) = shown.guided
    assert first.token_ratios is not None
    said = browser.run(f"{active}.getAttribute('aria-label')").replace("\N{MINUS SIGN}", "-")
    assert said.startswith(f"s: Ratio {first.token_ratios[1]:+.4f}, Running sum {sum(first.token_ratios[:2]):+.4f}")
    tip = "document.querySelector('.tip')"
    assert browser.run(f"{tip}.hidden") is False
    assert browser.run(f"{tip}.textContent").replace("\N{MINUS SIGN}", "-").startswith("2: sRatio")
    assert browser.run("document.querySelector('.panel .dot').hidden") is False
    browser.key("ArrowDown")
    assert browser.run(f"[...{active}.parentNode.children].indexOf({active})") > 10
    browser.key("End")
    assert browser.run(f"{active}.getAttribute('aria-label')").startswith("end of turn:")
    browser.key("Escape")
    assert browser.run(f"{tip}.hidden") is True
    browser.key("Tab")
    assert browser.run(f"{active}.textContent") == "Values as a table"

    # A right-to-left response is walked with the arrow that points where reading goes.
    browser.run("document.querySelectorAll('.panel')[1].querySelector('.t').focus()")
    browser.key("ArrowLeft")
    assert browser.run(f"[...{active}.parentNode.children].indexOf({active})") == 1

    # The pointer on the curve finds the token below it.
    browser.run("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    place = json.loads(browser.run("JSON.stringify(document.querySelector('.plot').getBoundingClientRect())"))
    where = {"x": place["x"] + place["width"] / 2, "y": place["y"] + 5}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **where)
    assert browser.run("document.querySelectorAll('.panel')[0].querySelectorAll('.t.on').length") == 1

    # The switch shows one view or both; a narrow screen never scrolls sideways.
    visible = "[...document.querySelectorAll('.panel')].filter((one) => one.offsetParent).length"
    assert browser.run(visible) == 2
    browser.run("document.querySelector('input[value=both]').click()")
    assert browser.run(visible) == 4
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") == 360

    # Dark is dark.
    light = browser.run("getComputedStyle(document.body).backgroundColor")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", features=dark)
    assert light == "rgb(255, 255, 255)" != browser.run("getComputedStyle(document.body).backgroundColor")
