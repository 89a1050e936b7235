"""Known vulnerabilities: none in the versions that constraints.txt names, by pip-audit.

pip-audit asks a database over the network, where there is one: pip install pip-audit. Without either, nothing is known,
and that is what is said; it is no pass.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

COUNT = 1
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


def run(options: argparse.Namespace) -> bool:
    """Prints a row a vulnerability, or why none is known of."""
    words = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]
    beside = shutil.which("pip-audit")  # it may have an environment of its own
    command = [beside] if beside else [sys.executable, "-m", "pip_audit"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=600)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"not audited: pip-audit is not installed, or its database cannot be reached ({why})")
        return False
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        print(
            f"not audited: the database knows none of the {len(packages)} packages, so it cannot be reached from here"
        )
        return False
    found = [(package, one) for package in packages for one in package.get("vulns", ())]
    for package, one in found:
        print(f"{package['name']} {package['version']}  {one['id']}  mended in {', '.join(one['fix_versions']) or '–'}")
    print(
        f"{len(found)} known vulnerabilities in {len(packages) - len(skipped)} packages; not known: {skipped or 'none'}"
    )
    return not found and not skipped
