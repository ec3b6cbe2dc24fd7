"""Every sentence of SECURITY.md has tests that try it: this table names them, and is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faults.campaign import CHECKS

ROOT = Path(__file__).resolve().parents[1]
TRIED = {  # how a sentence or a clause begins: the checks of the campaign and the tests that try it
    "nothing is unpickled": "R22 R21 R23",
    "a config is JSON": "R26 test_config.py::test_a_wrong_value_is_refused_by_name",
    ".mat files are read by a process": "R24 test_matfiles.py::test_process_ends_with_the_one_that_started_it",
    "of a folder or repository": "test_export.py::test_what_else_lies_in_a_folder_is_not_read "
    "test_export.py::test_a_repository_is_read_at_its_commit "
    "test_export.py::test_a_repository_without_a_commit_is_refused",
    "names in a file are never": "R22 R25",
    "in a run directory that came": "R25 test_directory.py::test_links_out_of_the_directory_are_not_written_through",
    "a lock that is": "test_directory.py::test_links_out_of_the_directory_are_not_written_through "
    "test_checkpoint.py::test_a_lock_that_is_a_link_out_of_the_directory_is_not_followed",
    "FIFOs and devices": "R25 test_checkpoint.py::test_a_fifo_is_refused_without_waiting_for_a_writer",
    "a data file may unpack": "R45 R24 R23",
    "config.json has at most": "R44 R26",
    "metrics.jsonl 1 GiB": "R44 test_directory.py::test_rows_of_other_types_are_refused",
    "a checkpoint has at most": "R21 R44 test_checkpoint.py::test_headers_beyond_the_limits "
    "test_directory.py::test_networks_larger_than_the_file_are_refused_before_they_are_made",
    "using a model takes": "R44 test_model.py::test_batches_do_not_matter",
    "all that the command line prints": "test_cli.py::test_a_config_of_others_prints_no_control_characters "
    "test_cli.py::test_what_is_printed_is_printable_and_fits_the_stream",
    "What is made of .mat files": "R46 test_matfiles.py::test_cache_that_others_may_change_is_not_used "
    "test_data.py::test_mat_files_of_others_in_the_cache_are_refused",
    "MNIST is known": "test_data.py::test_mnist_damaged_file",
    "every checkpoint holds": "R6 test_directory.py::test_rows_that_a_checkpoint_counted_and_are_gone_are_said",
    "what it says has the types": "test_directory.py::test_what_a_file_says_is_not_converted",
    "A run stops before": "R41",
}
NO_CLAIM = ("A config's own", "Training takes what",
            "A file that was made", "If that matters", "Not covered", "Report a", "torch.distributed",
            "Python packages", "please do not", "its digest is right", "read it before")  # fmt: skip


def claims() -> list[str]:
    """The clauses from "run code" to the end, each on one line."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("must not\n", 1)[1]
    text = " ".join(re.sub(r"^- (run|read|hang|take|print)[^:]*: ", ". ", text, flags=re.M).split())
    return [c.strip(" ;") for c in re.split(r"[.;] (?=[a-zA-Z.])|Damage is found: ", text) if c.strip(" .;")]


def test_every_clause_is_tried():
    open_ = [c for c in claims() if not c.startswith((*TRIED, *NO_CLAIM))]
    assert open_ == []
    text = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    assert [start for start in TRIED if start not in text] == []


@pytest.mark.parametrize("test", sorted({test for tests in TRIED.values() for test in tests.split()}))
def test_what_tries_it_exists(test):
    if "::" not in test:
        assert test in CHECKS
    else:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
