"""Collection."""

from registry.registry_helpers import Bench


def test_now(any_bench: Bench) -> None:
    """x."""
    one = any_bench.data("1")
    any_bench.data("2")
    three = any_bench.data("3")
    any_bench.yard.delete(three.name, force=True)
    assert any_bench.yard.collect().objects == 0
    found = any_bench.yard.collect(now=True)
    print(found)
    assert found.objects == 2
    assert any_bench.yard.collect(now=True, dry_run=True).objects == 0


def test_check(any_bench: Bench) -> None:
    """x."""
    one = any_bench.model(1)
    any_bench.model(2)
    any_bench.yard.folder(one)
    report = any_bench.yard.check(read_data=True)
    print(report)
    assert report.exit_code == 0
    assert not report.findings
