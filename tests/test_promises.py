"""Every promise of the store's design has a test that is named after it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

PROMISES = {
    "an acknowledged commit survives `kill -9` and power loss": (
        "test_an_acknowledged_commit_survives_kill_9",
        "test_an_acknowledged_object_survives_power_loss",
    ),
    "an interrupted command leaves the old state or the new one": (
        "test_an_interrupted_command_leaves_the_old_state_or_the_new_one",
        "test_a_killed_operation_leaves_the_old_state_or_the_new_one",
    ),
    "`gc` never removes what a concurrent commit, checkout, merge or deployment needs": (
        "test_a_commit_that_counts_on_a_file_being_collected",
        "test_a_long_checkout_during_gc_now",
        "test_what_a_deployment_serves_stays",
        "test_gc_never_removes_what_a_concurrent_merge_needs",
    ),
    "`check` finds every structural fault": ("test_check_finds_every_structural_fault",),
    "`check --read-data` finds every flipped bit": ("test_check_read_data_finds_every_flipped_bit",),
    "`--read-data-subset N%` samples": ("test_read_data_subset_samples",),
    "a damaged object is never served": (
        "test_a_damaged_object_is_never_served",
        "test_a_damaged_segment_is_never_served",
    ),
    "a full disk is a typed error and reads go on": (
        "test_a_full_disk_is_a_typed_error_and_reads_go_on",
        "test_a_really_full_disk_loses_nothing",
    ),
    "a lost catalog is rebuilt": ("test_a_lost_catalog_is_rebuilt",),
    "a promoted version is made whole before its alias moves": (
        "test_a_promoted_version_is_whole_before_its_alias_moves",
    ),
    "a merged version costs what its adapter costs": ("test_a_merged_version_costs_what_its_adapter_costs",),
    "deleting a version removes its name, never bytes that something live needs": (
        "test_a_base_force_deleted_under_derived_children_keeps_working",
    ),
    "a retry never makes a second version": ("test_a_retried_commit_makes_no_second_version",),
    "of twelve processes that move one alias, exactly one wins every round": (
        "test_exactly_one_of_twelve_processes_wins_each_round",
    ),
    "two hosts may compact one segment against different delta bases": (
        "test_two_hosts_compact_one_segment_against_different_bases",
    ),
    "encodings refuse a cycle": ("test_deltas_both_ways_make_no_ring",),
}


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_has_its_test_by_name(promise: str) -> None:
    """The tests that hold a promise exist under the names that say so."""
    found = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }
    assert [name for name in PROMISES[promise] if name not in found] == []
