"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import websocket
from numpy.typing import NDArray
from PIL import Image

_WORDS = (
    "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--remote-debugging-port=0", "--remote-allow-origins=*",
    "--window-size=1640,1300", "about:blank",
)  # fmt: skip
#: All text of a page, also in shadow roots, where Bokeh draws.
_TEXT = """
(() => { const all = node => [...node.childNodes].map(n => n.nodeType === 3 ? n.textContent
  : ["STYLE", "SCRIPT"].includes(n.tagName) ? "" : all(n) + (n.shadowRoot ? all(n.shadowRoot) : "")).join(" ");
  return all(document.body).replace(/\\s+/g, " "); })()
"""


class Browser:
    """One tab."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=30)
        self._numbers = itertools.count(1)
        self.failed: list[str] = []
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go to a page."""
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        """What the page says."""
        return str(self.run(_TEXT))

    def until(self, pattern: str, seconds: float = 30.0) -> str:
        """Wait for words on the page, and give all of them."""
        end = time.monotonic() + seconds
        while not re.search(pattern, text := self.text()):
            assert time.monotonic() < end, f"{pattern!r} did not come: {text[:3000]}"
            time.sleep(0.1)
        return text

    def until_value(self, script: str, seconds: float = 10.0) -> Any:
        """Wait for the value of an expression."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} stays {value!r}"
            time.sleep(0.05)
        return value

    def click(self, x: int, y: int) -> None:
        """Click on a place of the picture."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            pressed = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def picture(self) -> NDArray[np.uint8]:
        """The page as (y, x, RGB)."""
        data = base64.b64decode(self._call("Page.captureScreenshot")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _call(self, method: str, **arguments: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            said = json.loads(self._socket.recv())
            if said.get("id") == number:
                assert "result" in said, said
                return said["result"]
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        """Keep exceptions of scripts, and what is asked of other hosts."""
        if said.get("method") == "Runtime.exceptionThrown":
            self.failed.append(json.dumps(said["params"]["exceptionDetails"])[:500])
        if said.get("method") == "Network.requestWillBeSent":
            url = said["params"]["request"]["url"]
            if not url.startswith(("http://127.0.0.1:", "data:", "about:", "blob:")):
                self.failed.append(url)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start it, and end it with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [*_WORDS[:-1], f"--user-data-dir={profile}", _WORDS[-1]]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            port = next(
                m[1] for line in process.stderr if (m := re.search(r"DevTools listening on ws://.*?:(\d+)", line))
            )
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
                tab = next(t for t in json.load(answer) if t["type"] == "page")
            browser = Browser(tab["webSocketDebuggerUrl"])
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
            process.wait(30)
            process.stderr.close()
