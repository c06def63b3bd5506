"""What a scheduled time starts on this machine: one run, in a process of its own.

python -m xlnet_pipeline.targets.local.scheduled HOME NAME
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from xlnet import recipe as recipes
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.submission import Submission


def run_once(home: str, name: str) -> int:
    """Run a schedule's recipe and note the run."""
    folder = Path(home) / "schedules"
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    recipe = recipes.from_json(json.dumps(content["recipe"]))
    target = LocalTarget(home)
    done = target.submit(Submission(recipe), echo=print)
    done.schedule, done.due = name, started
    record.write(done, target.directory(done.id) / "run.json")
    with (folder / f"{name}.runs").open("a", encoding="utf-8") as file:
        file.write(f"{started} {done.id} {done.status}\n")
    return done.exit_status


if __name__ == "__main__":
    sys.exit(run_once(*sys.argv[1:3]))
