"""Lists known vulnerabilities in what each lane locks: `make audit`.

pip-audit asks the package index's advisories about the versions in uv.lock, lane by lane. The
exit code is 0 whatever it finds (docs/security.md says what matters here), and 1 where the
advisories can't be reached: a mirror of the index may answer without any, so a version with
advisories of old is asked about along with the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

PIP_AUDIT = "pip-audit==2.10.1"
# Long known to be vulnerable: an index that has nothing to say of it has no advisories at all.
CANARY = "jinja2==2.10"
LANES = {"legacy (TFX 1.16)": "3.10", "current (TFX 1.21)": "3.13"}


@dataclass(frozen=True)
class Advisory:
    """One advisory about one locked package."""

    package: str
    version: str
    names: tuple[str, ...]
    fixed_in: tuple[str, ...]


def main() -> None:
    """Audits both lanes and prints a table of each."""
    uv = os.environ.get("UV", "uv")
    locked = _locked(uv)
    console = Console(width=110)
    if not _audit(uv, [CANARY]):
        sys.exit(
            f"make audit: the package index has no advisories: expected some on {CANARY}, received "
            "none. It is a mirror without them; run this where the index itself can be reached."
        )
    for lane, python in LANES.items():
        chosen = of_lane(locked, python)
        found = _audit(uv, chosen)
        packages = len({advisory.package for advisory in found})
        title = f"{lane}: {len(found)} advisories on {packages} of {len(chosen)} packages"
        table = Table("package", "locked", "fixed in", "advisory", title=title)
        for advisory in found:
            fixed = ", ".join(advisory.fixed_in) or "no release"
            table.add_row(advisory.package, advisory.version, fixed, " ".join(advisory.names))
        console.print(table)
    console.print("docs/security.md says which matter here, and why a version stays.")


def of_lane(locked: list[Requirement], python: str) -> list[str]:
    """Returns name==version of what is installed with this Python, without duplicates."""
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return sorted(
        {
            f"{requirement.name}{requirement.specifier}"
            for requirement in locked
            if requirement.marker is None or requirement.marker.evaluate(machine)
        }
    )


def _locked(uv: str) -> list[Requirement]:
    command = [uv, "export", "--quiet", "--locked", "--no-dev", "--no-emit-project"]
    command += ["--no-hashes", "--no-annotate", "--no-header", "--format", "requirements.txt"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [Requirement(line) for line in text.splitlines() if line.strip()]


def _audit(uv: str, requirements: list[str]) -> list[Advisory]:
    with tempfile.TemporaryDirectory() as folder:
        listed, answer = Path(folder, "requirements.txt"), Path(folder, "answer.json")
        listed.write_text("\n".join(requirements) + "\n")
        command = [uv, "tool", "run", "--from", PIP_AUDIT, "pip-audit", "--disable-pip"]
        command += ["--no-deps", "--requirement", str(listed), "--progress-spinner", "off"]
        command += ["--format", "json", "--output", str(answer)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not answer.exists():
            sys.exit(
                "make audit: pip-audit could not ask for the advisories; expected an answer from "
                f"the package index, received:\n{done.stderr.strip()[-800:]}\n"
                "Run it where the index's advisories can be reached."
            )
        said = json.loads(answer.read_text())
    return [
        Advisory(
            package["name"],
            package["version"],
            (problem["id"], *problem["aliases"][:1]),
            tuple(problem["fix_versions"]),
        )
        for package in said["dependencies"]
        for problem in package.get("vulns", ())
    ]


if __name__ == "__main__":
    main()
