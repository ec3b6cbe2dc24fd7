"""Does anything get lost, or go wrong in silence? Injects faults, thousands of them, and counts.

    python bench/faults.py                       all checks, about half an hour on two cores
    python bench/faults.py R10 R11 --quick       some, one case in ten
    python bench/faults.py R10 --seed 3 --case 17        one case again

A case is drawn from (seed, check, case number) and from nothing else, so that a failure can be looked at again by the
command that is printed with it; where a fault hits at a random instant, the instant is, what runs then is not.
Each case gets an empty folder, which is kept if it fails. A full run of a check writes its line to
bench/results/faults.json. What the faults are is in fault_runs.py, fault_input.py and fault_parzen.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # networks this small gain nothing from threads

from fault_case import Check, Outcome, Skip  # noqa: E402

MODULES = ("fault_runs", "fault_input", "fault_parzen")
RESULTS = ROOT / "bench" / "results" / "faults.json"
COLUMNS = ("id", "fault", "cases", "passed", "lost steps", "wrong results", "seconds", "seed")


def checks() -> dict[str, Check]:
    """All checks by id, R1 first."""
    found: dict[str, Check] = {}
    for name in MODULES:
        if importlib.util.find_spec(name):
            found |= importlib.import_module(name).CHECKS
    return dict(sorted(found.items(), key=lambda item: int(item[0][1:])))


def chosen(check: Check, quick: bool) -> list[int]:
    """All cases, or one of every ten, each time another one of the ten."""
    return [case for case in range(check.cases) if not quick or case % 10 == case // 10 % 10]


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = checks()
    parser.add_argument("checks", nargs="*", metavar="ID", help=f"of {', '.join(every)}; default: all")
    parser.add_argument("--quick", action="store_true", help="one case in ten")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this case only")
    options = parser.parse_args()
    unknown = set(options.checks) - every.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(every)}")
    from fastaae.run import provenance

    where = provenance.describe()
    print(f"seed {options.seed}; {where['hardware']['name']}; commit {where['git'].get('commit')}")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    done = {}
    for check_id in options.checks or every:
        check = every[check_id]
        cases = chosen(check, options.quick) if options.case is None else [options.case]
        row = done[check_id] = campaign(check_id, check, options.seed, cases)
        print(f"| {' | '.join(str(row[name]) for name in COLUMNS)} |", *row["failures"], sep="\n", flush=True)
    total = {name: sum(row[name] for row in done.values()) for name in ("cases", "passed", "wrong results")}
    failed = sum(len(row["failures"]) for row in done.values())
    print(f"{total['cases']} cases, {total['passed']} passed, {total['wrong results']} wrong results accepted")
    if not options.quick and options.case is None:
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        before |= {check_id: row | where for check_id, row in done.items()}
        ordered = dict(sorted(before.items(), key=lambda item: int(item[0][1:])))
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
