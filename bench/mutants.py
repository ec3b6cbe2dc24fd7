"""Would the tests notice? Changes a module in small ways, one at a time, and counts which changes its tests see.

    pip install cosmic-ray
    python bench/mutants.py fastaae/parzen.py tests/test_parzen.py tests/test_doors.py
    python bench/mutants.py fastaae/checkpoint.py tests/test_checkpoint.py --n 50 --seed 0

cosmic-ray makes all mutants there are, in a clone of the last commit; of these so many are drawn from the seed. Prints
the survivors, each as a diff, and how many were killed. A mutant that takes longer than --seconds counts as killed.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """[cosmic-ray]
module-path = {module!r}
timeout = {seconds}
excluded-modules = []
test-command = {command!r}
[cosmic-ray.distributor]
name = "local"
"""


def drawn(session: Path, n: int, seed: int) -> int:
    """Leave n of a session's mutants, drawn from the seed. Returns: how many there were."""
    with sqlite3.connect(session) as database:
        rows = database.execute("select job_id, operator_name, occurrence from mutation_specs").fetchall()
        jobs = [job for job, *_ in sorted(rows, key=lambda row: row[1:])]
        kept = set(random.Random(seed).sample(jobs, min(n, len(jobs))))
        for job in set(jobs) - kept:
            for table in ("mutation_specs", "work_items"):
                database.execute(f"delete from {table} where job_id = ?", (job,))
    return len(jobs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="path of the module from the root")
    parser.add_argument("tests", nargs="+", help="files of tests, the quickest first")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone, session = Path(folder, "clone"), Path(folder, "session.sqlite")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        command = " ".join([sys.executable, "-m pytest -x -q -p no:xdist -p no:cacheprovider", *options.tests])
        given = {"module": options.module, "seconds": float(options.seconds), "command": command}
        Path(folder, "config.toml").write_text(CONFIG.format(**given))

        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "cosmic_ray.cli", *arguments]
            return subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True).stdout

        run("baseline", str(Path(folder, "config.toml")))
        run("init", str(Path(folder, "config.toml")), str(session))
        total = drawn(session, options.n, options.seed)
        run("exec", str(Path(folder, "config.toml")), str(session))
        outcomes = collections.Counter()
        for line in run("dump", str(session)).splitlines():
            item, result = json.loads(line)
            outcome = result["test_outcome"] if result["worker_outcome"] == "normal" else result["worker_outcome"]
            outcomes[outcome] += 1
            if outcome == "survived":
                print(item["mutations"][0]["operator_name"], result["diff"], sep="\n", flush=True)
    n, survived = sum(outcomes.values()), outcomes["survived"]
    print(f"{options.module}: {n} of {total} mutants, seed {options.seed}: {n - survived} killed, {survived} survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
