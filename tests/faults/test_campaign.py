"""The fault campaign's quick tier, one case in twenty of every check; and that it counts."""

from __future__ import annotations

import pytest

from .campaign import CHECKS, campaign, chosen, inject
from .case import Check, Outcome, Skip


@pytest.mark.parametrize("check_id", CHECKS)
@pytest.mark.filterwarnings("default")
def test_one_case_in_twenty(check_id):
    check = CHECKS[check_id]
    row = campaign(check_id, check, 0, chosen(check, quick=True))
    assert row["failures"] == [] and row["wrong results"] == 0
    assert row["passed"] == row["cases"]
    if not row["cases"]:
        pytest.skip(row["fault"])


def test_a_case_is_drawn_from_seed_check_and_number_alone(tmp_path):
    drawn = []
    check = Check("none", 2, lambda rng, case, folder: drawn.append((case, rng.integers(1 << 30))))
    for seed, case in ((0, 0), (0, 1), (1, 0), (0, 1)):
        assert inject("R99", check, seed, case).error is None
    assert drawn[1] == drawn[3] and len(set(drawn)) == 3


def test_failures_are_counted_and_can_be_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(rng, case, folder):
        if case == 1:
            raise ValueError("first\nlast")
        return Outcome("accepted", lost=3, wrong=True, inputs=5) if case == 2 else None

    row = campaign("R99", Check("none", 3, run), 7, [0, 1, 2])
    assert (row["cases"], row["passed"], row["lost steps"], row["wrong results"]) == (7, 1, 3, 1)
    assert [f.split(" [")[0] for f in row["failures"]] == [
        "R99 --seed 7 --case 1: ValueError: last", "R99 --seed 7 --case 2: accepted"]  # fmt: skip


def test_what_a_machine_cannot_inject_is_said():
    def run(rng, case, folder):
        raise Skip("no strace")

    row = campaign("R99", Check("none", 3, run), 0, [0, 1, 2])
    assert (row["cases"], row["fault"], row["failures"]) == (0, "none (skipped: no strace)", [])
