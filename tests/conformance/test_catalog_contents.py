"""What a catalog knows of files, segments, packs, metadata, states and counters, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from catalog_helpers import add, digest, write
from modelyard.catalog import counters, files, leases, repos, segments, versions
from modelyard.catalog.files import FileRow, Piece
from modelyard.catalog.segments import SegmentRow
from modelyard.errors import InternalError, NotFoundError, YardError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.catalog import Catalog, Transaction


def row(number: int, *inputs: int, pack: int = 900, depth: int = 0) -> SegmentRow:
    made_from = tuple(digest(at) for at in inputs)
    encoding = "delta" if inputs else "packed"
    return SegmentRow(digest(number), 10, encoding, digest(pack), 8, 4, '{"codec":"planes/1"}', depth, made_from)


def cut(tx: Transaction, file: int, *numbers: int, whole: bool = True) -> None:
    files.record(tx, [FileRow(digest(file), 10 * len(numbers), "sha", cut="cdc/1", whole=whole)])
    files.record_pieces(tx, digest(file), [Piece(at, digest(number), 10 * at, 10) for at, number in enumerate(numbers)])


def test_a_file_recorded_again_loses_nothing(catalog: Catalog) -> None:
    """A second recording makes a file whole, never less so, and keeps its cut, git blob and time of use."""
    first = FileRow(digest(1), 7, "sha", git_blob="blob", cut="whole/1", whole=True, used_at="2026")
    bare = FileRow(digest(1), 7, "sha", whole=False)
    with write(catalog) as tx:
        files.record(tx, [first, FileRow(digest(2), 0, "sha", whole=False)])
        files.record(tx, [bare, FileRow(digest(2), 0, "sha", git_blob="b", cut="whole/1")])
        files.record(tx, [])
    with catalog.read() as connection:
        found = files.find(connection, [digest(2), digest(1), digest(3)])
    assert found == {digest(1): first, digest(2): FileRow(digest(2), 0, "sha", git_blob="b", cut="whole/1")}


def test_pieces_come_in_order_and_make_their_segments(catalog: Catalog) -> None:
    """A file's pieces are given in order; segments without a row get one without an encoding; twice changes nothing."""
    with write(catalog) as tx:
        segments.place(tx, row(11))
        cut(tx, 1, 12, 11, 12)
        cut(tx, 1, 13, 13)
        cut(tx, 2, 11)
        files.record(tx, [FileRow(digest(3), 0, "sha")])
        files.record_pieces(tx, digest(3), [])
    with catalog.read() as connection:
        assert [(p.position, p.segment, p.start, p.size) for p in files.pieces(connection, digest(1))] == [
            (0, digest(12), 0, 10),
            (1, digest(11), 10, 10),
            (2, digest(12), 20, 10),
        ]
        assert files.pieces(connection, digest(3)) == files.pieces(connection, digest(4)) == []
        assert {file: len(listed) for file, listed in files.pieces_of(connection, map(digest, range(5))).items()} == {
            digest(1): 3,
            digest(2): 1,
        }
        found = segments.find(connection, [digest(11), digest(12), digest(13)])
    assert found == {digest(11): row(11), digest(12): SegmentRow(digest(12), 10)}


def test_pieces_need_their_file(catalog: Catalog) -> None:
    """Pieces of a file that has no row are refused, and nothing of them stays."""

    def fail() -> None:
        with write(catalog) as tx:
            files.record_pieces(tx, digest(1), [Piece(0, digest(2), 0, 10)])

    with pytest.raises(YardError) as error:
        fail()
    assert error.value.code == "catalog_refused"
    with catalog.read() as connection:
        assert segments.find(connection, [digest(2)]) == {}


def test_whole_and_used_are_set_for_many(catalog: Catalog) -> None:
    """Being whole and the time of use are set for the files named, and for no others."""
    with write(catalog) as tx:
        files.record(tx, [FileRow(digest(number), 1, "sha") for number in range(4)])
        files.set_whole(tx, [digest(1), digest(2)], whole=False)
        files.touch(tx, [digest(2), digest(3)], tx.at)
        files.set_whole(tx, [], whole=False)
        at = tx.at
    with catalog.read() as connection:
        found = files.find(connection, map(digest, range(4)))
    assert [(found[digest(n)].whole, found[digest(n)].used_at) for n in range(4)] == [
        (True, None),
        (False, None),
        (False, at),
        (True, at),
    ]


def test_placing_replaces_a_segment_and_its_inputs(catalog: Catalog) -> None:
    """A segment placed again has the new encoding, pack and inputs and none of the old; inputs keep their order."""
    with write(catalog) as tx:
        segments.place_all(tx, [row(1, 3, 2), row(2), row(3)])
        assert segments.find(tx.connection, [digest(1)])[digest(1)].inputs == (digest(3), digest(2))
        segments.place(tx, row(1, 2, pack=901, depth=1))
        assert segments.find(tx.connection, [digest(1)]) == {digest(1): row(1, 2, pack=901, depth=1)}
        assert segments.users(tx.connection, digest(3)) == ([], [])
        raw = SegmentRow(digest(1), 10, "raw", digest(902), 8, 10)
        segments.place(tx, raw)
        assert segments.find(tx.connection, [digest(1)]) == {digest(1): raw}
        assert segments.users(tx.connection, digest(2)) == ([], [])


def test_an_input_must_have_a_row(catalog: Catalog) -> None:
    """A segment cannot be made from one that the catalog does not know."""

    def fail() -> None:
        with write(catalog) as tx:
            segments.place(tx, row(1, 2))

    with pytest.raises(YardError) as error:
        fail()
    assert error.value.code == "catalog_refused"


def test_an_unknown_encoding_is_refused(catalog: Catalog) -> None:
    """The database itself refuses an encoding that readers do not know."""

    def fail() -> None:
        with write(catalog) as tx:
            segments.place(tx, replace(row(1), encoding="zip"))

    with pytest.raises(YardError) as error:
        fail()
    assert error.value.code == "catalog_refused"


def test_homes_are_whole_files(catalog: Catalog) -> None:
    """A segment's home is a whole file and where it starts there: of several, the same one for everybody."""
    with write(catalog) as tx:
        cut(tx, 105, 11, 12, 11)
        cut(tx, 104, 13, 11, whole=False)
        cut(tx, 106, 13, 12)
    with catalog.read() as connection:
        found = segments.homes(connection, [digest(11), digest(12), digest(13), digest(14)])
    assert found == {digest(11): (digest(105), 0), digest(12): (digest(105), 10), digest(13): (digest(106), 0)}


def test_users_are_files_and_made_segments(catalog: Catalog) -> None:
    """Who has a segment: each file once, and each segment that is made from it once."""
    with write(catalog) as tx:
        cut(tx, 102, 11, 11)
        cut(tx, 101, 12, 11)
        segments.place_all(tx, [row(21, 11, 11), row(20, 12, 11)])
    with catalog.read() as connection:
        assert segments.users(connection, digest(11)) == ([digest(101), digest(102)], [digest(20), digest(21)])
        assert segments.users(connection, digest(99)) == ([], [])


def test_the_closure_reaches_every_input(catalog: Catalog) -> None:
    """The closure has the segments asked for and all they are made from, through any number of steps, each once."""
    chain = [row(number, number + 1, depth=50 - number) for number in range(1, 50)]
    with write(catalog) as tx:
        segments.place_all(tx, [*chain, row(50), row(60, 50, 3), row(70)])
    with catalog.read() as connection:
        assert segments.closure(connection, []) == {}
        assert segments.closure(connection, [digest(49), digest(70)]).keys() == {digest(49), digest(50), digest(70)}
        whole = segments.closure(connection, [digest(1), digest(60)])
        assert whole.keys() == {digest(number) for number in (*range(1, 51), 60)}
        assert whole[digest(60)].inputs == (digest(50), digest(3))


def test_the_closure_of_a_cycle_ends(catalog: Catalog) -> None:
    """Rows that form a cycle, which nothing should write, are each given once."""
    with write(catalog) as tx:
        segments.place_all(tx, [row(1, 2), row(2, 3), row(3, 1), row(4, 4)])
    with catalog.read() as connection:
        assert segments.closure(connection, [digest(2), digest(4)]).keys() == {digest(n) for n in range(1, 5)}


def test_packs_are_recorded_once_and_forgotten(catalog: Catalog) -> None:
    """A pack is noted with its size; noting it again changes nothing; what is forgotten is gone."""
    with write(catalog) as tx:
        for _ in range(2):
            segments.record_pack(tx, digest(900), 5)
        segments.record_pack(tx, digest(901), 6)
        segments.place_all(tx, [row(1, 2), row(2)])
        cut(tx, 100, 1)
    with write(catalog) as tx:
        assert segments.packs(tx.connection) == {digest(900): 5, digest(901): 6}
        files.forget(tx, [digest(100), digest(999)])
        segments.forget(tx, [digest(1), digest(2)])
        segments.forget_packs(tx, [digest(900)])
    with catalog.read() as connection:
        assert files.find(connection, [digest(100)]) == {}
        assert segments.find(connection, [digest(1), digest(2)]) == {}
        assert segments.packs(connection) == {digest(901): 6}


def test_a_segment_in_use_is_not_forgotten(catalog: Catalog) -> None:
    """The database refuses to forget a segment that a file has, or that another one is made from."""
    with write(catalog) as tx:
        cut(tx, 100, 1)
        segments.place_all(tx, [row(2, 3), row(3)])

    def forget(number: int) -> None:
        with write(catalog) as tx:
            segments.forget(tx, [digest(number)])

    for number in (1, 3):
        with pytest.raises(YardError) as error:
            forget(number)
        assert error.value.code == "catalog_refused"


def test_eighteen_thousand_segments_take_few_statements(catalog: Catalog) -> None:
    """A model of 18,000 small tensors is written, found, located and closed over in tens of statements, not thousands."""
    count = 18_000
    digests = [digest(number) for number in range(count)]
    statements: list[str] = []
    event.listen(catalog._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with write(catalog) as tx:
        statements.clear()
        cut(tx, count + 1, *range(count))
        segments.place_all(tx, [row(number, *([number - 1] if number % 2 else [])) for number in range(count)])
        written = len(statements)
    with catalog.read() as connection:
        statements.clear()
        assert len(files.pieces(connection, digest(count + 1))) == count
        assert segments.find(connection, digests).keys() == set(digests)
        assert len(segments.homes(connection, digests)) == count
        assert segments.closure(connection, digests[1::2]).keys() == set(digests)
        assert files.find(connection, digests) == {}
        read = len(statements)
    assert written < 30
    assert read < 100


def keyed(tx: Transaction, keys: Sequence[dict[str, str]]) -> tuple[int, list[int]]:
    repo = repos.ensure(tx, "model", "t/a")
    found = [
        add(tx, repo, digest(number), metadata=json.dumps(metadata, sort_keys=True))
        for number, metadata in enumerate(keys)
    ]
    return repo.id, found


def test_versions_are_filtered_by_metadata(catalog: Catalog) -> None:
    """`where` keeps the versions that have every key with that very value; paging and deletion work with it."""
    hostile = "x'; DROP TABLE versions;--"
    keys = [{"stage": "a", "lang": "de"}, {"stage": "b"}, {"stage": "a"}, {}, {"stage": "a", "lang": hostile}]
    with write(catalog) as tx:
        repo_id, seqs = keyed(tx, keys)
        other = repos.ensure(tx, "model", "t/b")
        add(tx, other, digest(0), metadata='{"stage":"a"}')
    with write(catalog) as tx:
        connection = tx.connection

        def numbers(**where: str) -> list[int]:
            return [found.number for found in versions.in_repo(connection, repo_id, where=where)]

        assert numbers(stage="a") == [5, 3, 1]
        assert numbers(stage="a", lang="de") == [1]
        assert numbers(lang=hostile) == [5]
        assert numbers(stage="A") == numbers(stag="a") == numbers(stage="") == []
        assert numbers() == [5, 4, 3, 2, 1]
        page = versions.in_repo(connection, repo_id, where={"stage": "a"}, limit=1, before=5)
        assert [found.number for found in page] == [3]
        versions.set_deleted(tx, seqs[2], deleted=True)
        assert numbers(stage="a") == [5, 1]
        everything = versions.in_repo(connection, repo_id, where={"stage": "a"}, deleted=True)
        assert [found.number for found in everything] == [5, 3, 1]


def test_metadata_of_any_length_is_kept_and_found(catalog: Catalog) -> None:
    """A key or value longer than an index entry may be is kept as it is and found by its whole text alone."""
    long, longer = "é" * 5000, "é" * 5001
    with write(catalog) as tx:
        repo_id, _ = keyed(tx, [{"text": long, long: "key"}, {"text": longer}])
    with catalog.read() as connection:
        found = versions.in_repo(connection, repo_id, where={"text": long})
        assert [version.number for version in found] == [1]
        assert json.loads(found[0].metadata)["text"] == long
        assert [version.number for version in versions.in_repo(connection, repo_id, where={long: "key"})] == [1]
        assert versions.in_repo(connection, repo_id, where={"text": long[:-1]}) == []


def test_a_derivation_is_kept_as_it_was_said(catalog: Catalog) -> None:
    """What the committer says the files were computed by comes back; without it there is none."""
    said = '{"operation":"linear/1"}'
    with write(catalog) as tx:
        repo = repos.ensure(tx, "model", "t/a")
        seqs = [add(tx, repo, digest(1), derivation=said), add(tx, repo, digest(2))]
    with catalog.read() as connection:
        assert [found.derivation for found in versions.load(connection, seqs)] == [said, None]


def test_a_collected_version_comes_back_only_with_its_files(catalog: Catalog) -> None:
    """Deleted comes and goes; collected counts as deleted, stays so, and ends only when the files are stored again."""
    with write(catalog) as tx:
        repo = repos.ensure(tx, "model", "t/a")
        seq = add(tx, repo, digest(1))

        def states() -> tuple[int, bool, bool, bool]:
            found = versions.load(tx.connection, [seq])[0]
            return (
                versions.state(tx.connection, seq),
                versions.is_deleted(tx.connection, seq),
                found.deleted,
                found.collected,
            )

        assert states() == (versions.LIVE, False, False, False)
        versions.set_deleted(tx, seq, deleted=True)
        assert states() == (versions.DELETED, True, True, False)
        versions.set_deleted(tx, seq, deleted=False)
        assert states() == (versions.LIVE, False, False, False)
        versions.set_deleted(tx, seq, deleted=versions.COLLECTED)
        assert states() == (versions.COLLECTED, True, True, True)
        versions.set_deleted(tx, seq, deleted=True)
        assert states() == (versions.COLLECTED, True, True, True)
        assert versions.latest(tx.connection, repo.id) is None
        assert versions.in_repo(tx.connection, repo.id) == []
        with pytest.raises(NotFoundError, match="collected"):
            versions.set_deleted(tx, seq, deleted=False)
        versions.set_deleted(tx, seq, deleted=False, stored=True)
        assert states() == (versions.LIVE, False, False, False)


def test_counters_are_read_without_taking_a_number(catalog: Catalog) -> None:
    """The counter of collections starts at 0, moves only when a transaction commits, and reading moves none."""

    def fail() -> None:
        with write(catalog) as tx:
            tx.next("collections")
            raise RuntimeError("stop")

    with catalog.read() as connection:
        assert counters.current(connection, "collections") == 0
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with write(catalog) as tx:
        assert counters.current(tx.connection, "collections") == 0
        assert tx.next("collections") == 1
        assert counters.current(tx.connection, "collections") == 1
        with pytest.raises(InternalError, match="no counter"):
            counters.current(tx.connection, "no-such")


def test_an_observed_lease_remembers_since_when_it_stands_still(catalog: Catalog) -> None:
    """A second look at the same heartbeat keeps the first one's time; a heartbeat starts it anew."""
    with write(catalog) as tx:
        leases.acquire(tx, "l", purpose="commit", owner="me")
        taken = leases.listing(tx.connection)[0]
        assert (taken.observed_seq, taken.observed_at) == (None, None)
        assert leases.observe(tx, "l", "t1")
        assert leases.observe(tx, "l", "t2")
        seen = leases.listing(tx.connection)[0]
        assert (seen.observed_seq, seen.observed_at) == (taken.heartbeat_seq, "t1")
        leases.beat(tx, "l")
        assert leases.observe(tx, "l", "t3")
        assert leases.listing(tx.connection)[0].observed_at == "t3"
        assert not leases.observe(tx, "gone", "t1")
