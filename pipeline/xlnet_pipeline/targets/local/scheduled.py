"""Runs a schedule's recipe once. The scheduler starts this program at each scheduled time.

python -m xlnet_pipeline.targets.local.scheduled HOME NAME
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from xlnet import recipe as recipes
from xlnet.errors import RunError, UserError
from xlnet.redaction import visible
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.local.schedules import read
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.submission import Submission


def run_once(home: str, name: str) -> int:
    """Run a schedule's recipe and add the run to the schedule's history."""
    folder = Path(home) / "schedules"
    content = read(Path(home), name)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    recipe = recipes.from_json(json.dumps(content["recipe"]))
    target = LocalTarget(home)
    done = target.submit(Submission(recipe), echo=print)
    done.schedule, done.due = name, started
    record.write(done, target.directory(done.id) / "run.json")
    with (folder / f"{name}.runs").open("a", encoding="utf-8") as file:
        file.write(f"{started} {done.id} {done.status}\n")
    return done.exit_status


def main(home: str, name: str) -> int:
    """Run a schedule once and return the exit status of its run."""
    try:
        return run_once(home, name)
    except (UserError, RunError) as error:
        print(visible(f"error: schedule '{name}': {error}"), file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
