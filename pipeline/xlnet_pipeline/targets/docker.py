"""The docker target: like the local target, but each step runs in a container of our image.

A container sees the state directory and, read-only, the recipe's data. Its root file system is read-only, and it has no
capabilities. It has a network only if the recipe names something that is not on this machine. It runs with the user's
own id, so that the files that it writes belong to the user.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from xlnet import provenance
from xlnet.errors import RunError, UserError
from xlnet.recipe import Recipe
from xlnet.steps import KEPT
from xlnet_pipeline.images import build
from xlnet_pipeline.targets import processes
from xlnet_pipeline.targets.local import compiled
from xlnet_pipeline.targets.local.schedules import LocalSchedules
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.record import Run
from xlnet_pipeline.targets.submission import Say, Submission, refuse

ENGINE_FAILED = 125  # exit status of ``docker run`` when the container was never started

_GLOB = re.compile(r"[*?\[]")

# The only variables of ours that a container gets.
_PASSED = (
    "XLNET_NPROC",
    "XLNET_GRACE_SECONDS",
    "XLNET_RUN_ID",
    "XLNET_PIPELINE_HOME",
    "MLFLOW_TRACKING_URI",
    "OMP_NUM_THREADS",
    "PYTHONUNBUFFERED",
)
_CODE = (
    "import json; from xlnet import provenance, steps;"
    " print(json.dumps({name: provenance.code_parts(name) for name in steps.STEPS}))"
)


class DockerTarget(LocalTarget):
    """Runs in containers on this machine. See :class:`xlnet_pipeline.targets.Target` for the methods."""

    name = "docker"
    interpreter = "python3"  # of the image, whose first process passes signals on to the step's program
    cannot: Mapping[str, str] = {
        **{name: why for name, why in LocalTarget.cannot.items() if name not in ("image", "memory")},
        "device": "is for the target local; on docker the image says what there is",
        "schedules": "schedules on this machine run without containers; leave --target docker out",
    }

    def __init__(self, home: str | Path | None = None) -> None:
        """Use the state directory ``home``, like the local target."""
        super().__init__(home)
        self.program = ""
        self.image = ""
        self.memory = ""
        self._mounts: list[Path] = []
        self._network = "none"

    def submit(self, submission: Submission, *, echo: Say | None = None, live: Say | None = None) -> Run:
        """Run the recipe in the foreground and return its record.

        Raises:
            UserError: there is no engine or no such image, or the submission asks for what this target cannot do.
        """
        refuse(submission, self.cannot)
        self.prepare(submission)
        return super().submit(submission, echo=echo, live=live)

    def prepare(self, submission: Submission) -> None:
        """Find the engine and the image (the CPU image that was built last, if none is named) of a submission.

        Raises:
            UserError: there is no engine, or no such image.
        """
        recipe = submission.recipe
        self.program = build.engine()
        self.image = self._identity(submission.image)
        self.memory = submission.memory
        self._mounts = [path for path in sorted(_data_folders(recipe)) if path != self.home]
        self._network = "bridge" if _leaves_this_machine(recipe) else "none"

    def schedules(self) -> LocalSchedules:
        """Always raises UserError, because scheduled runs do not use containers."""
        raise UserError(self.cannot["schedules"])

    def pipeline(self, recipe: Recipe) -> compiled.Specification:
        """Return the compiled pipeline. Each step's cache key names the code in the image that the step can reach."""
        code = {step: provenance.digest_json(self._code[step]) for step in KEPT}
        return compiled.specification(code, self.home, recipe.pretrains, recipe.shards)

    def code_parts(self, step: str) -> dict[str, str]:
        """Return the parts of a step's code in the image, with their fingerprints."""
        return self._code[step]

    @contextlib.contextmanager
    def starting(self) -> Iterator[processes.Start]:
        """Yield a function that starts the steps of one run in containers of the submission's image."""
        yield self._start

    def _start(self, command: list[str], environment: dict[str, str], watch: processes.Watch) -> int:
        environment = {**environment, "XLNET_IMAGE": f"{build.NAME}@{self.image}", "XLNET_IMAGE_DIGEST": self.image}
        name = f"xlnet-{uuid.uuid4().hex[:12]}"
        last = ""

        def line(text: str) -> None:
            nonlocal last
            last = text
            watch.line(text)

        whole = [self.program, "run", "--name", name, *self._options(environment), self.image, *command]
        remove = [self.program, "rm", "--force", name]
        try:
            plain = dataclasses.replace(watch, line=line, live=None)  # a container has no terminal
            status = processes.run(whole, environment, plain, after=remove)
        finally:  # also if the engine's client ended but the container did not
            subprocess.run(remove, capture_output=True, check=False)
        if status == ENGINE_FAILED:
            raise RunError(f"{self.program} could not start the step's container: {last}")
        return status

    def _options(self, environment: dict[str, str]) -> Iterator[str]:
        ours = [*_PASSED, *(one for one in environment if one.startswith("XLNET_IMAGE"))]
        yield from (f"--env={one}" for one in ours if one in {**os.environ, **environment})
        yield _mount(self.home)
        yield from (_mount(one, "readonly") for one in self._mounts)
        yield f"--user={os.getuid()}:{os.getgid()}"
        yield f"--workdir={Path.cwd()}"
        yield f"--network={self._network}"
        yield from ("--read-only", "--tmpfs=/tmp:exec", "--cap-drop=ALL", "--security-opt=no-new-privileges")
        if self.memory:
            yield from (f"--memory={self.memory}", f"--memory-swap={self.memory}")

    def _identity(self, image: str) -> str:
        if not image:
            built = build.recorded("cpu", self.home)
            if built is None:
                raise UserError("no CPU image was built yet; build it first: xlnet-pipeline build")
            image = built.tag
        found = build.image_id(self.program, image)
        if not found:
            raise UserError(f"image '{image}' is not in {self.program}; build it: xlnet-pipeline build")
        return found

    @functools.cached_property
    def _code(self) -> dict[str, dict[str, str]]:
        """Ask the image for the parts of each step's code."""
        command = [self.program, "run", "--rm", "--network=none", "--read-only", self.image, "python", "-c", _CODE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            found: dict[str, dict[str, str]] = json.loads(done.stdout)
        except json.JSONDecodeError:
            reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise UserError(
                f"image '{self.image}' does not hold xlnet ({reason}); build one: xlnet-pipeline build"
            ) from None
        return found


def _mount(folder: Path, *more: str) -> str:
    """Return the option that mounts a folder at the same path. The engine reads its value as a line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(["type=bind", f"source={folder}", f"target={folder}", *more])
    return f"--mount={line.getvalue()}"


def _inputs(recipe: Recipe) -> list[str]:
    return [*itertools.chain(*recipe.data.inputs.values()), *recipe.pretraining.files]


def _data_folders(recipe: Recipe) -> set[Path]:
    """Return the directories of the recipe's local files, with links resolved."""
    weights = [path for path in (recipe.data.tokenizer, recipe.model.pretrained) if path and Path(path).exists()]
    folders = set()
    for path in [*_inputs(recipe), *weights]:
        if "://" in path or path.startswith("demo:"):
            continue
        found = Path(_GLOB.split(path)[0]).absolute()
        for one in (found, found.resolve()):
            folder = one if one.is_dir() else one.parent
            folders |= {folder} if folder.is_dir() else set()
    return folders


def _leaves_this_machine(recipe: Recipe) -> bool:
    """Whether a step needs the network: for a bucket, a registry's server, or a model hub."""
    uris = [*_inputs(recipe), recipe.registry.uri, os.environ.get("MLFLOW_TRACKING_URI", "")]
    remote = any("://" in one and not one.startswith(("sqlite:", "file:")) for one in uris)
    pretrained = recipe.model.pretrained
    return remote or bool(pretrained and not Path(pretrained).exists())
