"""Check: every structural fault and every flipped bit is found, named and told who needs it; and what repair does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import insert, update

from modelyard.catalog import schema
from modelyard.errors import InputError, IntegrityError
from modelyard.registry import Version
from modelyard.registry.check import Sample
from modelyard.registry.findings import CheckReport, Finding
from registry.registry_helpers import DATA, Bench, report

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def serious(found: CheckReport) -> list[Finding]:
    """What is more than good to know."""
    return [finding for finding in found.findings if finding.level != "info"]


def codes(found: CheckReport) -> list[tuple[str, str]]:
    """Level and code of each finding but the harmless ones."""
    return [(finding.level, finding.code) for finding in serious(found)]


def overwrite(path: Path, data: bytes) -> None:
    """As a disk rots: in place."""
    path.chmod(0o600)
    path.write_bytes(data)


def flip(path: Path, at: int) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    overwrite(path, bytes(data))


def file_of(bench: Bench, version: Version, name: str = "data.txt") -> Path:
    """Where a version's file lies."""
    entry = version.file(name)
    assert entry is not None
    return bench.store.file_path(entry.blake3)


def change(bench: Bench, *statements: Any) -> None:
    """Do to the rows what only a hand in the database does."""
    with bench.yard._context.catalog.write(author="x", at=NOW) as tx:
        if tx.connection.dialect.name == "sqlite":
            tx.connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for statement in statements:
            tx.connection.execute(statement)


@pytest.fixture
def packed(bench: Bench) -> tuple[Bench, Version, Path]:
    """A yard with a version whose weights are in a pack, and that pack."""

    def folder(seed: int) -> Path:
        made = bench.write({"config.json": '{"model_type": "llama"}'})
        save_file(
            {"w": np.random.default_rng(seed).standard_normal((200, 300), dtype=np.float32)}, made / "model.safetensors"
        )
        return made

    first = bench.yard.commit(folder(1), "team/model", kind="base")
    bench.yard.commit(folder(2), "team/model", kind="base")
    bench.yard.compact(idle_days=0)
    bench.yard.collect(now=True, force=True)
    packs = sorted((bench.root / "packs").rglob("*"))
    return bench, first, next(path for path in packs if path.is_file())


def test_a_sound_yard_has_no_findings(any_bench: Bench) -> None:
    """Nothing is found where nothing is wrong, whatever was done; what was looked at is counted."""
    data = any_bench.data()
    model = any_bench.model(1.0)
    any_bench.model(2.0, from_=model)
    any_bench.yard.add_report(model, report(model, [True], data))
    any_bench.yard.folder(model)
    any_bench.yard.promote(model, "production")
    found = any_bench.yard.check(read_data=True)
    assert found.findings == ()
    assert found.exit_code == 0
    assert found.checked["versions"] == 3
    assert found.checked["bytes"] > 0


MISSING: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "wrong_size": lambda path: overwrite(path, path.read_bytes() + b"x"),
    "not_regular": lambda path: path.symlink_to(path.rename(path.with_name("elsewhere")).name),
}


@pytest.mark.row(43)
@pytest.mark.parametrize("code", MISSING)
def test_a_file_that_is_not_there_as_it_should_be(any_bench: Bench, code: str) -> None:
    """Without reading a byte: missing, of another size, or a link. The finding names the object, who needs it, a next step."""
    version = any_bench.data("some text")
    MISSING[code](file_of(any_bench, version))
    found = any_bench.yard.check()
    assert codes(found) == [("damage", code)]
    assert found.exit_code == 8
    finding = serious(found)[0]
    assert finding.object == f"files/{version.files[0].blake3}"
    assert finding.hint
    if code != "not_regular":
        assert finding.holders == (version.name,)
    assert json.dumps(found.to_dict())


@pytest.mark.row(43)
def test_a_pipe_in_place_of_an_object(bench: Bench) -> None:
    """A named pipe is reported, and neither check waits for somebody to write into it."""
    version = bench.data("some text")
    path = bench.root / "manifests" / version.id
    path.unlink()
    os.mkfifo(path)
    assert ("damage", "not_regular") in codes(bench.yard.check(read_data=True))


@pytest.mark.row(42)
def test_check_read_data_finds_every_flipped_bit(packed: tuple[Bench, Version, Path]) -> None:
    """A promise: with `read_data`, a bit anywhere in a file, pack, manifest, report or journal entry is found, and only there."""
    bench, version, _ = packed
    bench.yard.add_report(version, report(version, [True], bench.data("some text")))
    paths = [
        path
        for area in ("files", "packs", "manifests", "reports", "journal")
        for path in (bench.root / area).rglob("*")
    ]
    areas = set()
    for path in filter(Path.is_file, paths):
        sound = path.read_bytes()
        areas.add(path.relative_to(bench.root).parts[0])
        for at in {0, len(sound) // 2, len(sound) - 1}:
            flip(path, at)
            found = bench.yard.check(read_data=True)
            assert found.exit_code == 8, f"{path} at {at}"
            assert any(path.name in finding.object for finding in found.findings), f"{path} at {at}"
            overwrite(path, sound)
    assert areas == {"files", "packs", "manifests", "reports", "journal"}
    assert bench.yard.check(read_data=True).exit_code == 0


def test_a_check_of_structure_reads_no_weights(bench: Bench) -> None:
    """Without `read_data` a flipped bit in a file is not looked for; a later check with it finds it."""
    flip(file_of(bench, bench.data("some text")), 3)
    assert bench.yard.check().exit_code == 0
    assert codes(bench.yard.check(read_data=True)) == [("damage", "damaged")]


def test_samples_cover_everything_in_turn() -> None:
    """A share of the objects, another one with each seed, and every object once in 100 / percent runs."""
    names = [f"{number * 7919 % 65536:04x}" + "0" * 60 for number in range(2000)]
    for percent, runs in ((10.0, 10), (25.0, 4), (50.0, 2)):
        times = [sum(Sample(percent, seed).has(name) for seed in range(runs)) for name in names]
        assert set(times) == {1}
        share = sum(Sample(percent, 3).has(name) for name in names) / len(names)
        assert abs(share - percent / 100) < 0.03


def test_read_data_subset_samples(bench: Bench) -> None:
    """The object that a seed chooses is read with it, and not with another; a share that is none is refused."""
    version = bench.data("some text")
    flip(file_of(bench, version), 3)
    digest = str(version.files[0].blake3)
    hits = [seed for seed in range(10) if Sample(10, seed).has(digest)]
    found = {seed: bench.yard.check(subset=10, seed=seed).exit_code for seed in range(10)}
    assert found == {seed: 8 if seed in hits else 0 for seed in range(10)}
    with pytest.raises(InputError, match="0"):
        bench.yard.check(subset=0)


@pytest.mark.row(43)
def test_a_pack_that_does_not_agree_with_the_catalog(packed: tuple[Bench, Version, Path]) -> None:
    """A missing pack, a short one, and rows that say something else than its index."""
    bench, version, pack = packed
    sound = pack.read_bytes()
    pack.rename(pack.with_name("away"))
    missing = bench.yard.check()
    assert {code for _, code in codes(missing)} >= {"missing", "incomplete"}
    assert missing.exit_code == 8
    assert any(version.name in finding.holders for finding in missing.findings)
    pack.with_name("away").rename(pack)
    overwrite(pack, sound[:-1])
    assert ("damage", "wrong_size") in codes(bench.yard.check())
    overwrite(pack, sound)
    change(bench, update(schema.segments).where(schema.segments.c.pack.is_not(None)).values(length=1))
    assert ("damage", "index_differs") in codes(bench.yard.check())


ROWS: dict[str, tuple[str, Callable[[Bench, Version], list[Any]]]] = {
    "kind": ("version_differs", lambda _b, _v: [update(schema.versions).values(kind="merged")]),
    "counter": ("counter_behind", lambda _b, _v: [update(schema.counters).values(value=0)]),
    "number": ("counter_behind", lambda _b, _v: [update(schema.repos).values(last_number=0)]),
    "size": ("file_differs", lambda _b, _v: [update(schema.files).values(sha256="0" * 64)]),
    "pieces": ("pieces_differ", lambda _b, _v: [update(schema.file_segments).values(start=1)]),
    "journal": ("journal_differs", lambda _b, _v: [update(schema.audit).values(action="tag")]),
    "no file": ("row_missing", lambda _b, _v: [update(schema.version_files).values(blake3="0" * 64)]),
}


@pytest.mark.parametrize("what", ROWS)
def test_check_finds_every_structural_fault(any_bench: Bench, what: str) -> None:
    """Each fault that only a hand in the database makes is found by its own code."""
    version = any_bench.data("some text")
    code, statements = ROWS[what]
    change(any_bench, *statements(any_bench, version))
    assert ("damage", code) in codes(any_bench.yard.check())


def test_segments_in_a_circle_or_too_deep(bench: Bench) -> None:
    """A segment that is made from itself, or from bytes more than four steps away, is damage."""
    names = [f"{number:x}" * 64 for number in range(1, 8)]
    rows = [
        {
            "digest": name,
            "size": 1,
            "encoding": None,
            "pack": None,
            "offset": 0,
            "length": 0,
            "params": "{}",
            "depth": 0,
        }
        for name in names
    ]
    inputs = [{"segment": a, "position": 0, "input": b} for a, b in zip(names[1:], names, strict=False)]
    change(bench, insert(schema.segments).values(rows), insert(schema.segment_inputs).values(inputs))
    assert {code for _, code in codes(bench.yard.check())} == {"too_deep", "wrong_depth"}
    change(bench, insert(schema.segment_inputs).values(segment=names[0], position=0, input=names[6]))
    assert {code for _, code in codes(bench.yard.check())} == {"cycle"}


@pytest.mark.row(42)
def test_manifests_and_reports(any_bench: Bench) -> None:
    """A manifest or report that is missing or damaged is found without reading weights."""
    data = any_bench.data("some text")
    version = any_bench.model()
    digest = any_bench.yard.add_report(version, report(version, [True], data))
    any_bench.store.remove("reports", digest)
    flip(any_bench.root / "manifests" / data.id, 9)
    any_bench.store.remove("manifests", version.id)
    found = {(finding.code, finding.object) for finding in serious(any_bench.yard.check())}
    assert found == {
        ("missing", f"reports/{digest}"),
        ("damaged", f"manifests/{data.id}"),
        ("missing", f"manifests/{version.id}"),
    }


@pytest.mark.row(45)
def test_a_catalog_that_is_older_than_the_store(bench: Bench) -> None:
    """It lists the changes and objects that the catalog does not know, as warnings; nothing is removed."""
    bench.data("old")
    bench.yard._context.catalog.close()
    old = (bench.folder / "catalog.db").read_bytes()
    new = bench.data("new")
    bench.yard._context.catalog.close()
    (bench.folder / "catalog.db").write_bytes(old)
    found = bench.yard.check()
    assert found.exit_code == 3
    assert {(finding.code, finding.object) for finding in serious(found)} == {
        ("journal_ahead", "journal/2"),
        ("unknown_object", f"files/{new.files[0].blake3}"),
        ("unknown_object", f"manifests/{new.id}"),
    }
    assert bench.store.has_file(new.files[0].blake3)


def test_gaps_in_the_journal_are_warnings(bench: Bench) -> None:
    """A lost entry matters to a rebuild only; one that was not published yet is none."""
    bench.data("1")
    bench.data("2")
    (bench.root / "journal" / "1").unlink()
    assert codes(bench.yard.check()) == [("warning", "journal_gap")]


def test_links_that_are_not_faithful(bench: Bench) -> None:
    """A folder of links that holds something else than the version is a warning, and is built again by its next use."""
    version = bench.data("some text")
    folder = bench.yard.folder(version)
    (folder / "more.txt").write_text("x")
    found = bench.yard.check()
    assert (codes(found), found.exit_code) == ([("warning", "links_differ")], 3)
    bench.yard.folder(version)
    assert bench.yard.check().findings == ()


@pytest.mark.row(51)
def test_times_in_the_future_are_reported(bench: Bench) -> None:
    """As something to know: nothing is ordered by them."""
    bench.open(clock=lambda: NOW + timedelta(days=3650)).commit(bench.write({"data.txt": "x"}), DATA)
    found = bench.open(clock=lambda: NOW).check()
    assert [(finding.level, finding.code) for finding in found.findings] == [("info", "future_time")]
    assert found.exit_code == 0


@pytest.mark.row(42)
def test_repair_makes_anew_what_is_held_elsewhere(packed: tuple[Bench, Version, Path]) -> None:
    """A damaged whole file comes back from packs, a damaged manifest from the catalog; both are verified."""
    bench, version, _ = packed
    bench.yard.promote(version, "production")
    weights = file_of(bench, version, "model.safetensors")
    sound = weights.read_bytes()
    flip(weights, 1000)
    flip(bench.root / "manifests" / version.id, 20)
    found = bench.yard.check(read_data=True, repair=True)
    assert [finding.repaired for finding in serious(found)] == [True, True]
    assert found.exit_code == 0
    assert weights.read_bytes() == sound
    assert bench.yard.check(read_data=True).exit_code == 0
    assert not (bench.root / "quarantine").exists()


@pytest.mark.row(42)
def test_repair_puts_aside_what_is_lost(bench: Bench) -> None:
    """A damaged object that is held nowhere else is moved, never served; reads say where it is; a new commit heals."""
    version = bench.data("some text")
    path = file_of(bench, version)
    flip(path, 3)
    found = bench.yard.check(read_data=True, repair=True)
    assert found.exit_code == 8
    aside = bench.root / "quarantine" / f"files-{path.name}"
    assert str(aside) in serious(found)[0].text
    assert aside.is_file()
    with pytest.raises(IntegrityError):
        bench.yard.files(version).read("data.txt")
    with pytest.raises(IntegrityError, match="quarantine"):
        bench.store.open_file(version.files[0].blake3)
    assert bench.data("some text") == version
    assert bench.yard.check(read_data=True).exit_code == 0
