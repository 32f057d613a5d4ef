"""A headless Chromium, spoken to through a pair of pipes (Chrome DevTools Protocol): nothing to install beside it."""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium():
    """Where one lies, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page; errors of its console are kept."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from, self._number, self._waiting = to_browser, from_browser, 0, b""
        self.errors = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    _session = None

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, file):
        self.call("Page.navigate", url=Path(file).as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, expression):
        """What JavaScript makes of it; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key):
        typed = {"text": "\r"} if key == "Enter" else {}  # without it no button hears of Enter
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def _next(self):
        while b"\0" not in self._waiting:
            part = os.read(self._from.fileno(), 1 << 16)
            assert part, "the browser ended"
            self._waiting += part
        message, _, self._waiting = self._waiting.partition(b"\0")
        event = json.loads(message)
        if event.get("method") == "Runtime.exceptionThrown" or (
            event.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled")
            and event["params"].get("entry", event["params"]).get("level", event["params"].get("type")) == "error"
        ):
            self.errors.append(event["params"])
        return event


@contextmanager
def tab():
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    options = "--headless=new --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe --window-size=1280,900"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads descriptor 3 and writes 4.
        line = f'exec "$0" {options} --user-data-dir="$1" 3<&{to_read} 4>&{from_write}'
        process = subprocess.Popen(
            ["bash", "-c", line, chromium(), profile],
            pass_fds=(to_read, from_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        with os.fdopen(to_write, "wb") as to_browser, os.fdopen(from_read, "rb") as from_browser:
            try:
                yield Tab(to_browser, from_browser)
            finally:
                process.terminate()
                process.wait(20)
