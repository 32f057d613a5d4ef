"""uv.lock: it agrees with pyproject.toml, pins by hash and names no registry but PyPI; what becomes of its audit."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
PYPI = {"registry": "https://pypi.org/simple"}
FINDING = {
    "id": "PYSEC-0-1",
    "modified": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "pillow", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
            "versions": [],
        }
    ],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("pyproject.toml", "uv.lock", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def advisories():
    """A function: serve OSV's API, which knows this of Pillow and nothing of the rest, until the test ends."""
    servers = []

    def serve(findings):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
                body = json.dumps({"vulns": findings} if asked == "pillow" else {}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1/query"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def check(project):
    command = [sys.executable, "-m", "uv", "lock", "--check", "--offline", "--default-index", PYPI["registry"]]
    return subprocess.run([*command, "--python", sys.executable], cwd=project, capture_output=True, text=True)


def audit(*options):
    command = [sys.executable, ROOT / ".ci" / "audit.py", *options]
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_it_agrees_with_the_project(project):
    done = check(project)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("pin", "other"),
    [('"rapidfuzz==3.14.6"', '"rapidfuzz==3.14.5"'), ('"pillow>=11,<14"', '"pillow>=90"'), ('"rich>=14,<16",', "")],
)
def test_a_pin_that_changed_is_noticed(project, pin, other):
    text = (project / "pyproject.toml").read_text()
    assert pin in text
    (project / "pyproject.toml").write_text(text.replace(pin, other))
    assert check(project).returncode != 0


def test_every_file_has_a_hash_and_comes_from_pypi():
    own, *others = sorted(LOCK["package"], key=lambda package: package["name"] != "difference-feedback")
    assert own["source"] == {"editable": "."}
    assert all(package["source"] == PYPI for package in others)
    files = [file for p in others for file in (*p.get("wheels", ()), *([p["sdist"]] if "sdist" in p else ()))]
    assert all(file["url"].startswith("https://files.pythonhosted.org/packages/") for file in files)
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", file["hash"]) for file in files)
    assert all(package.get("wheels") or package.get("sdist") for package in others)


def test_an_audit_tells_vulnerabilities_and_fails(advisories):
    done = audit("-s", "osv", "--osv-url", advisories([FINDING]))
    assert done.returncode == 1, done.stderr
    first, last = done.stdout.splitlines()
    assert re.fullmatch(r"pip-audit: pillow [\d.]+: PYSEC-0-1, fixed in 99\.1", first)
    assert re.fullmatch(r"pip-audit: \d{3} packages \(0 not known there\), 1 known vulnerabilities", last)


def test_an_audit_without_findings_passes(advisories):
    done = audit("-s", "osv", "--osv-url", advisories([]))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"pip-audit: \d{3} packages \(0 not known there\), 0 known vulnerabilities\n", done.stdout)


def test_an_audit_that_cannot_be_had_says_so_and_passes():
    done = audit("-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("pip-audit: not done, no advisory service answers (-s osv --osv-url http://127.0.0.1:9/v1/")
    assert "refused" in line
