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
