"""Known vulnerabilities and licenses of the pinned dependencies (`make audit`).

    python benchmarks/audit.py [--constraints FILE]

Prints a table of every pinned package that is installed: version and license as it declares them.
Then pip-audit looks the pins up; without a network one line says that this was not done.  The exit
code is 1 where a vulnerability is known, and 0 otherwise.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lightstride.results import markdown_table

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PIN = re.compile(r"([\w.-]+)==(\S+)")
UNKNOWN = "not declared"
SECONDS = 300


def pins(path: Path) -> dict[str, str]:
    """Version by name of every pinned package."""
    lines = path.read_text("utf-8").splitlines()
    return {found[1]: found[2] for line in lines if (found := PIN.fullmatch(line.strip()))}


def license_of(package: metadata.PackageMetadata) -> str:
    """What a package declares: an expression, a classifier, or a first line of text."""
    told: Mapping[str, Any] = package.json
    if expression := told.get("license_expression"):
        return str(expression)
    classifiers = [str(each) for each in told.get("classifier", ())]
    named = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License ::")]
    text = str(told.get("license", "")).strip().splitlines()
    return " or ".join(named) or (text[0][:60] if text else UNKNOWN)


def licenses(pinned: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, version installed, license) of every pinned package that is installed."""
    rows = []
    for name in pinned:
        try:
            package = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        rows.append((name, package["Version"], license_of(package)))
    return rows


def look_up(path: Path) -> list[str] | str:
    """A line for each known vulnerability of a pin, or why nothing could be looked up."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(path), "--no-deps", "--disable-pip"]
    try:
        run = subprocess.run(
            [*command, "-f", "json", "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        packages = json.loads(run.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS} s"
    except (ValueError, KeyError, TypeError):
        return (run.stderr.strip().splitlines() or ["no answer"])[-1][:200]
    return [
        f"{package['name']} {package['version']}: {found['id']}, mended in "
        f"{', '.join(found['fix_versions']) or 'no version yet'}"
        for package in packages
        for found in package.get("vulns", ())
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print licenses and vulnerabilities; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS)
    path = parser.parse_args(arguments).constraints
    pinned = pins(path)
    rows = licenses(pinned)
    print(markdown_table(["package", "version", "license"], rows))
    others = [
        f"{name} {there}" for name, there, _ in rows if there.partition("+")[0] != pinned[name]
    ]
    if others:
        print(f"audit: other versions than pinned are installed: {', '.join(others)}")
    found = look_up(path)
    if isinstance(found, str):
        print(f"audit: vulnerabilities were not looked up: {found}", file=sys.stderr)
        return 0
    print("\n".join(found) or f"no known vulnerability in {len(pinned)} packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
