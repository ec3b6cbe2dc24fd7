"""Does anything get lost, or go wrong in silence? Injects faults, thousands of them, and counts.

    python bench/faults.py                       all checks, about half an hour on two cores
    python bench/faults.py R10 R11 --quick       some, one case in twenty
    python bench/faults.py R10 --seed 3 --case 17        one case again

A case is drawn from (seed, check, case number) and from nothing else, so that a failure can be looked at again by the
command that is printed with it; where a fault hits at a random instant, the instant is, what runs then is not.
Each case gets an empty folder, which is kept if it fails. A full run of a check writes its line to
bench/results/faults.json. The faults are in the modules beside this one, by what they attack.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import (
    arrays,
    checkpoints,
    data_files,
    directories,
    disks,
    estimator,
    ranks,
    resuming,
    running_code,
    runs,
    saving,
    scoring,
    surroundings,
)
from .case import Check, Outcome, Skip
from .inside import provenance
from .processes import ROOT

RESULTS = ROOT / "bench" / "results" / "faults.json"
COLUMNS = ("id", "fault", "cases", "passed", "lost steps", "wrong results", "seconds", "seed")
ATTACKED = (
    *(arrays, checkpoints, data_files, directories, disks, estimator, ranks, resuming, running_code, runs, saving),
    *(scoring, surroundings),
)


def by_number(of_checks: dict[str, Any]) -> dict[str, Any]:
    """In the order R1, R2, ..."""
    return dict(sorted(of_checks.items(), key=lambda item: int(item[0][1:])))


CHECKS: dict[str, Check] = by_number({name: check for module in ATTACKED for name, check in module.CHECKS.items()})


def chosen(check: Check, quick: bool) -> list[int]:
    """All cases, or one of every twenty, each time another one of the twenty."""
    return [case for case in range(check.cases) if not quick or case % 20 == case // 20 % 20]


def inject(check_id: str, check: Check, seed: int, case: int) -> Outcome:
    """One case. Raises Skip where this machine cannot inject it."""
    rng = np.random.default_rng([seed, int(check_id[1:]), case])
    folder = Path(tempfile.mkdtemp(prefix=f"fault-{check_id}-{case}-"))
    try:
        outcome = check.run(rng, case, folder)
    except Skip:
        shutil.rmtree(folder)
        raise
    except Exception as error:
        last = (str(error).strip() or "no message").splitlines()[-1]
        outcome = Outcome(f"{type(error).__name__}: {last}")
    outcome = outcome if isinstance(outcome, Outcome) else Outcome(outcome)
    if outcome.error is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        outcome.error += f" [{folder}]"
    return outcome


def campaign(check_id: str, check: Check, seed: int, cases: list[int]) -> dict[str, Any]:
    """A line of the table, and the failures."""
    started, outcomes, failures, skipped = time.perf_counter(), [], [], None
    for case in cases:
        try:
            outcomes.append(inject(check_id, check, seed, case))
        except Skip as reason:
            skipped = str(reason)
            break
        if outcomes[-1].error:
            failures.append(f"{check_id} --seed {seed} --case {case}: {outcomes[-1].error}")
    return {
        "id": check_id,
        "fault": check.fault if skipped is None else f"{check.fault} (skipped: {skipped})",
        "cases": sum(o.inputs for o in outcomes),
        "passed": sum(o.inputs for o in outcomes if o.error is None),
        "lost steps": sum(o.lost for o in outcomes),
        "wrong results": sum(o.wrong for o in outcomes),
        "seconds": round(time.perf_counter() - started, 1),
        "seed": seed,
        "failures": failures,
    }


def keep(rows: dict[str, dict[str, Any]]) -> None:
    """Put rows, by check, in place of those in the file of results."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(by_number(before | rows), indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="ID", help=f"of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="one case in twenty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this case only")
    options = parser.parse_args()
    unknown = set(options.checks) - CHECKS.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such check; there are {', '.join(CHECKS)}")
    where = provenance.describe()
    print(f"seed {options.seed}; {where['hardware']['name']}; commit {where['git'].get('commit')}")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    done = {}
    for check_id in options.checks or CHECKS:
        check = CHECKS[check_id]
        cases = chosen(check, options.quick) if options.case is None else [options.case]
        row = done[check_id] = campaign(check_id, check, options.seed, cases)
        print(f"| {' | '.join(str(row[name]) for name in COLUMNS)} |", *row["failures"], sep="\n", flush=True)
    total = {name: sum(row[name] for row in done.values()) for name in ("cases", "passed", "wrong results")}
    print(f"{total['cases']} cases, {total['passed']} passed, {total['wrong results']} wrong results accepted")
    if not options.quick and options.case is None:
        keep({check_id: row | where for check_id, row in done.items()})
    return 1 if any(row["failures"] for row in done.values()) else 0
