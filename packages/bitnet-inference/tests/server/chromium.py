"""A headless Chromium, driven over its debugging protocol on loopback."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}
_SHIFT = 8


def find_chromium() -> str | None:
    """The program, where there is one."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


class Browser:
    """A browser that is running; its pages know nothing of each other."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Have something done; what the browser tells meanwhile is kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            told = json.loads(self._socket.recv(timeout=60))
            if told.get("id") == self._last:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return dict(told["result"])
            self.events.append(told)

    def open(self, url: str, *, width: int = 1200, height: int = 800, dark: bool = False, scale: float = 1) -> Page:
        """A page in a profile of its own."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.resize(width, height, scale)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        page.send("Emulation.setEmulatedMedia", features=[scheme, motion])
        page.go(url)
        return page


class Page:
    """A page, looked at and used as people do."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **params)

    def go(self, url: str) -> None:
        self.run("window.old = true")
        self.send("Page.navigate", url=url)
        # Until the new page is there, this is answered by the old one.
        self.until("!window.old && document.readyState === 'complete'")

    def reload(self) -> None:
        self.run("window.old = true")
        self.send("Page.reload")
        self.until("!window.old && document.readyState === 'complete'")

    def close(self) -> None:
        self._browser.send("Target.disposeBrowserContext", browserContextId=self._context)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)

    def run(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        found = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", str(found)))
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> None:
        """Wait for something to be so."""
        look = f"() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }}"
        for _ in range(3):
            try:
                so = self.run(
                    f"new Promise((done) => {{ const look = {look}; const end = Date.now() + {seconds * 1000};"
                    "const again = () => look() ? done(true) : Date.now() > end ? done(false) : setTimeout(again, 20);"
                    "again(); })"
                )
            except RuntimeError as error:
                if "navigated" in str(error) or "destroyed" in str(error) or "context" in str(error):
                    continue  # a new page came in between
                raise
            if not so:
                raise AssertionError(f"after {seconds} s it is still not so: {expression}")
            return

    def click(self, selector: str) -> None:
        """Press and release the mouse over the middle of an element."""
        name = json.dumps(selector)
        box = self.run(
            f"(() => {{ const found = document.querySelector({name}); found.scrollIntoView({{block: 'nearest'}});"
            "const {x, y, width, height} = found.getBoundingClientRect();"
            "return [x + width / 2, y + height / 2, width]; })()"
        )
        if not box[2]:
            raise AssertionError(f"{selector} cannot be seen")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def write(self, text: str) -> None:
        """What a keyboard, or another way of writing, puts where the focus is."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": _SHIFT if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def picture(self, path: Path) -> None:
        """What is to be seen."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def told(self, method: str) -> list[dict[str, Any]]:
        """What the browser has told of this page."""
        self.run("0")
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] == method
        ]

    def forget(self, method: str) -> None:
        """As if it had not told so."""
        self._browser.events = [event for event in self._browser.events if event["method"] != method]

    def complaints(self) -> list[str]:
        """Errors and warnings in the console, and what was thrown and not caught."""
        thrown = [str(one["exceptionDetails"]) for one in self.told("Runtime.exceptionThrown")]
        logged = [f"{one['entry']['level']}: {one['entry']['text']}" for one in self.told("Log.entryAdded")]
        said = [
            str(one["args"]) for one in self.told("Runtime.consoleAPICalled") if one["type"] in ("error", "warning")
        ]
        return thrown + logged + said

    def asked(self) -> list[str]:
        """The addresses of all that was fetched."""
        return [one["request"]["url"] for one in self.told("Network.requestWillBeSent")]


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in a folder, until the end of the block."""
    program = find_chromium()
    if program is None:
        raise FileNotFoundError("there is no chromium")
    command = [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=log)
        try:
            with connect(_address(process), max_size=None, proxy=None, ping_interval=None) as socket:
                browser = Browser(socket)
                yield browser
                browser.send("Browser.close")
        finally:
            process.terminate()
            process.wait(30)
            if process.stderr is not None:
                process.stderr.close()


def _address(process: subprocess.Popen[bytes]) -> str:
    """Where it listens, as it says when it has begun to."""
    if process.stderr is None:
        raise ValueError("process: expected one whose errors can be read")
    said = []
    for line in process.stderr:
        said.append(line.decode(errors="replace"))
        if "DevTools listening on " in said[-1]:
            return said[-1].partition("DevTools listening on ")[2].strip()
    raise RuntimeError(f"chromium did not start: {''.join(said)[-2000:]}")
