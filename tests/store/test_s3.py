"""`modelyard.store.s3`: what a store on S3 does beyond the promises of every store."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import s3_case
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import AuthError, BusyError, ConflictError, InputError, IntegrityError, NotFoundError, YardError
from modelyard.store import s3, s3_bucket
from modelyard.store.s3 import S3Store
from modelyard.store.s3_location import S3Credentials, S3Location
from modelyard.store.s3_transfer import PIECE
from s3_faults import Asked, FaultyEndpoint, Reply, faulty, refusal

LONG = 2 * PIECE + 12_345


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def etag_of(store: S3Store, digest: str, area: str = "files") -> str:
    key = store.location.key(f"{area}/{digest[:2]}/{digest}")
    return str(s3_case.client().head_object(Bucket=s3_case.BUCKET, Key=key)["ETag"])


def uploads(store: S3Store) -> list[str]:
    found = s3_case.client().list_multipart_uploads(Bucket=s3_case.BUCKET, Prefix=store.location.prefix)
    return [entry["UploadId"] for entry in found.get("Uploads", [])]


@pytest.fixture
def store(tmp_path: Path) -> S3Store:
    return s3_case.make_store(tmp_path)


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up soon: what it does five times, it does twice."""
    monkeypatch.setattr(s3_bucket, "_ATTEMPTS", 2)


def elsewhere(store: S3Store, folder: Path, url: str | None = None) -> S3Store:
    """The same yard seen from another machine: another cache, perhaps through another endpoint."""
    return s3_case.make_store(folder / "elsewhere", store.location.prefix.rstrip("/"), url=url, init=False)


class TestTransfer:
    """Large objects."""

    def test_a_long_file_goes_up_in_parts(self, store: S3Store, tmp_path: Path) -> None:
        """A stream and an import beyond one piece are multipart uploads of the expected number of parts, and read back."""
        streamed, imported = some_bytes(LONG), some_bytes(LONG, 1)
        (tmp_path / "original").write_bytes(imported)
        first = store.put_file(streamed[at : at + 1_000_000] for at in range(0, LONG, 1_000_000))
        second = store.import_file(tmp_path / "original")
        for data, digests in ((streamed, first), (imported, second)):
            assert etag_of(store, digests.blake3).endswith('-3"')
            with elsewhere(store, tmp_path).open_file(digests.blake3) as stream:
                assert stream.read() == data
        assert uploads(store) == []

    def test_ranges_are_read_without_the_rest(self, store: S3Store, tmp_path: Path) -> None:
        """Any range of a stored file is read as such, also across pieces; one beyond the end is damage."""
        data = some_bytes(LONG)
        digest = store.put_file([data]).blake3
        with faulty() as endpoint:
            other = elsewhere(store, tmp_path, endpoint.url)
            for start, end in ((0, 1), (PIECE - 5, PIECE + 5), (LONG - 1, LONG), (7, 7), (0, LONG)):
                assert other.read_range("files", digest, start, end) == data[start:end]
            assert all(method in {"GET", "HEAD"} for method, _ in endpoint.asked)
            for start, end in ((LONG - 1, LONG + 1), (LONG, LONG + 1), (LONG + 5, LONG + 9)):
                with pytest.raises(IntegrityError, match="ends"):
                    other.read_range("files", digest, start, end)

    def test_an_open_file_can_be_read_on_and_sought(self, store: S3Store, tmp_path: Path) -> None:
        """A file that is not cached reads like any file: on, from anywhere, and to its end."""
        data = some_bytes(LONG)
        digest = store.put_file([data]).blake3
        with elsewhere(store, tmp_path).open_file(digest) as stream:
            assert stream.read(10) == data[:10]
            assert stream.seek(PIECE - 3) == PIECE - 3
            assert stream.read(6) == data[PIECE - 3 : PIECE + 3]
            assert stream.read() == data[PIECE + 3 :]
            assert stream.read(1) == b""
            assert stream.seek(-4, os.SEEK_END) == LONG - 4
            assert stream.read() == data[-4:]
            assert stream.seek(0) == 0
            assert stream.read() == data

    def test_a_stream_that_breaks_off_late_leaves_nothing(self, store: S3Store) -> None:
        """An exception after several pieces is passed on; no object and no upload is left."""

        def chunks() -> object:
            yield some_bytes(LONG)
            raise RuntimeError("the upload broke off")

        with pytest.raises(RuntimeError, match="broke off"):
            store.put_file(chunks())  # type: ignore[arg-type]
        assert list(store.digests("files")) == []
        assert uploads(store) == []

    def test_a_file_that_changes_while_it_is_sent_is_refused(self, store: S3Store, tmp_path: Path) -> None:
        """A file whose bytes differ between the pass that hashes and the one that sends is an error, and nothing is stored."""
        path = tmp_path / "original"
        path.write_bytes(some_bytes(LONG))
        seen = 0

        def observe(chunk: bytes) -> None:
            nonlocal seen
            seen += len(chunk)
            if seen == LONG:
                with path.open("r+b") as stream:
                    stream.write(b"other")

        with pytest.raises(InputError) as caught:
            store.import_file(path, observe=observe)
        assert caught.value.code == "changed"
        assert list(store.digests("files")) == []
        assert uploads(store) == []

    def test_two_writers_of_a_long_file_agree(self, store: S3Store, tmp_path: Path) -> None:
        """Two machines that store the same long file at the same time both succeed, and it verifies."""
        data = some_bytes(LONG)
        stores = [store, elsewhere(store, tmp_path).open()]
        start = threading.Barrier(2)

        def work(each: S3Store) -> Digest:
            start.wait()
            return each.put_file([data]).blake3

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(work, stores)) == [digest_bytes(data)] * 2
        assert list(store.digests("files")) == [digest_bytes(data)]
        store.verify_stored(digest_bytes(data))


class TestFaults:
    """An endpoint that fails."""

    def test_an_upload_that_keeps_failing_stores_nothing(
        self, store: S3Store, tmp_path: Path, few_attempts: None
    ) -> None:
        """When parts are refused again and again, the call fails as busy, and neither an object nor an upload is left."""

        def rule(asked: Asked) -> Reply | None:
            return refusal(500, "InternalError") if "partNumber=2" in asked.path else None

        with faulty() as endpoint:
            endpoint.rule = rule
            other = elsewhere(store, tmp_path, endpoint.url)
            with pytest.raises(BusyError, match="could not write"):
                other.put_file([some_bytes(LONG)])
        assert list(store.digests("files")) == []
        assert uploads(store) == []
        assert list((other.cache.root / "uploads").iterdir()) == []

    def test_parts_that_fail_once_are_sent_again(self, store: S3Store, tmp_path: Path, few_attempts: None) -> None:
        """A broken connection and a refusal in the middle of an upload are overcome."""
        failed = set()

        def rule(asked: Asked) -> Reply | None:
            if asked.method != "PUT" or "partNumber" not in asked.path or asked.path in failed:
                return None
            failed.add(asked.path)
            return Reply(0) if "partNumber=1" in asked.path else refusal(503, "SlowDown")

        data = some_bytes(LONG)
        with faulty() as endpoint:
            endpoint.rule = rule
            digest = elsewhere(store, tmp_path, endpoint.url).put_file([data]).blake3
        assert len(failed) == 3
        store.verify_stored(digest)

    def test_a_lost_answer_to_the_last_request_is_no_failure(
        self, store: S3Store, tmp_path: Path, few_attempts: None
    ) -> None:
        """When an upload was completed but the answer got lost, the object counts."""
        lost: list[str] = []

        def rule(asked: Asked) -> Reply | None:
            if asked.method == "POST" and "uploadId" in asked.path and not lost:
                lost.append(asked.path)
                return Reply(0, passed_on=True)
            return None

        with faulty() as endpoint:
            endpoint.rule = rule
            digest = elsewhere(store, tmp_path, endpoint.url).put_file([some_bytes(LONG)]).blake3
        assert len(lost) == 1
        store.verify_stored(digest)

    def test_a_broken_download_is_taken_up_again(self, store: S3Store, tmp_path: Path, few_attempts: None) -> None:
        """A connection that breaks in the middle of a piece costs a retry and no byte."""
        data = some_bytes(LONG)
        digest = store.put_file([data]).blake3
        cut = set()

        def rule(asked: Asked) -> Reply | None:
            wanted = asked.header("Range")
            if asked.method != "GET" or wanted is None or wanted in cut:
                return None
            cut.add(wanted)
            return Reply(cut=True)

        with faulty() as endpoint:
            endpoint.rule = rule
            path = elsewhere(store, tmp_path, endpoint.url).file_path(digest)
        assert len(cut) == 3
        assert path.read_bytes() == data

    def test_an_object_replaced_while_it_is_read_is_noticed(self, store: S3Store, tmp_path: Path) -> None:
        """A reader never puts the first half of one object together with the second half of another."""
        digest = store.put_file([some_bytes(6 * PIECE)]).blake3
        with elsewhere(store, tmp_path).open_file(digest) as stream:
            stream.read(10)
            s3_case.overwrite(store, "files", digest, some_bytes(6 * PIECE, 1))
            with pytest.raises(IntegrityError) as caught:
                stream.read()
        assert caught.value.code == "changed"

    def test_wrong_credentials_are_an_auth_error(self, store: S3Store, tmp_path: Path) -> None:
        """A key that the endpoint does not accept is an `AuthError` that says which variables to look at, from the first call on."""
        with faulty() as endpoint:
            if s3_case.is_moto():  # which believes everybody
                endpoint.rule = lambda _: refusal(403, "SignatureDoesNotMatch")
            location = s3_case.location(store.location.prefix.rstrip("/"), url=endpoint.url)
            wrong = S3Store(location, S3Credentials(s3_case.endpoint().credentials.access_key, "wrong"), tmp_path / "c")
            for call in (
                wrong.open,
                wrong.init,
                lambda: wrong.put_file([b"x"]),
                lambda: wrong.has_file(Digest("0" * 64)),
            ):
                with pytest.raises(AuthError) as caught:
                    call()
                assert "AWS_SECRET_ACCESS_KEY" in (caught.value.hint or "")
                assert "wrong" not in str(caught.value) + repr(wrong)

    def test_an_endpoint_that_is_not_there_is_named(self, tmp_path: Path, few_attempts: None) -> None:
        """Nobody listening is a typed error with the endpoint in its hint, and soon."""
        location = S3Location.parse("s3://yards/x?endpoint=http://127.0.0.1:1")
        with pytest.raises(YardError, match="could not read") as caught:
            S3Store(location, S3Credentials("a", "b"), tmp_path).open()
        assert caught.value.code == "store_unreachable"
        assert "http://127.0.0.1:1" in (caught.value.hint or "")

    def test_a_bucket_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        """A missing bucket is not found, for opening and making a yard alike; the hint makes it."""
        location = S3Location.parse(f"s3://no-such-bucket/x?endpoint={s3_case.endpoint().url}")
        store = S3Store(location, s3_case.endpoint().credentials, tmp_path)
        for call in (store.open, store.init):
            with pytest.raises(NotFoundError, match="no-such-bucket") as caught:
                call()
            assert "aws s3 mb s3://no-such-bucket" in (caught.value.hint or "")

    def test_the_surroundings_change_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Profiles, configuration files and endpoints of the environment do not reach the client."""
        (tmp_path / "config").write_text("[profile nonsense")
        for name, value in {
            "AWS_PROFILE": "nobody",
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "config"),
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_REGION": "nowhere",
        }.items():
            monkeypatch.setenv(name, value)
        digest = s3_case.make_store(tmp_path).put_file([b"x"]).blake3
        assert digest == digest_bytes(b"x")


class TestLeftovers:
    """Uploads that nobody ends."""

    def test_a_killed_upload_is_aborted_by_the_next_writer(self, store: S3Store, tmp_path: Path) -> None:
        """What a killed process left is aborted before the next first write on that machine, and nothing else is."""
        code = (
            "import sys, os, signal\n"
            "from pathlib import Path\n"
            "import s3_case\n"
            "from modelyard.store import s3_bucket\n"
            "put = s3_bucket.Bucket.put_part\n"
            "def dying(self, name, upload, number, data):\n"
            "    put(self, name, upload, number, data)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "s3_bucket.Bucket.put_part = dying\n"
            "store = s3_case.make_store(Path(sys.argv[1]), sys.argv[2], url=sys.argv[3], init=False)\n"
            f"store.put_file([bytes({LONG})])\n"
        )
        arguments = [str(tmp_path), store.location.prefix.rstrip("/"), s3_case.endpoint().url]
        path = os.pathsep.join([str(Path(s3_case.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        keys = s3_case.endpoint().credentials
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "YARD_TEST_S3_ENDPOINT": s3_case.endpoint().url,
            "YARD_TEST_S3_KEY": keys.access_key,
            "YARD_TEST_S3_SECRET": keys.secret_key,
        }
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(uploads(store)) == 1
        others = s3_case.client().create_multipart_upload(
            Bucket=s3_case.BUCKET, Key=store.location.key("files/00/other")
        )
        s3_case.make_store(tmp_path, store.location.prefix.rstrip("/")).put_file([b"next"])
        assert uploads(store) == [others["UploadId"]]

    def test_an_upload_from_elsewhere_is_aborted_when_it_is_a_week_old(
        self, store: S3Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`remove_leftovers` spares a young upload, which may be alive, and aborts an old one, of this yard only."""
        client = s3_case.client()
        client.create_multipart_upload(Bucket=s3_case.BUCKET, Key=store.location.key("files/00/slow"))
        strange = s3_case.location("strange")
        other = client.create_multipart_upload(Bucket=s3_case.BUCKET, Key=strange.key("files/00/theirs"))
        if s3_case.is_moto():  # where every upload began in 2010
            monkeypatch.setattr(s3, "_LEFT_SECONDS", 10**10)
        try:
            assert store.remove_leftovers() == 0
            assert len(uploads(store)) == 1
            monkeypatch.setattr(s3, "_LEFT_SECONDS", -5)
            assert store.remove_leftovers() == 1
            assert uploads(store) == []
            found = client.list_multipart_uploads(Bucket=s3_case.BUCKET, Prefix=strange.prefix)["Uploads"]
            assert [entry["UploadId"] for entry in found] == [other["UploadId"]]
        finally:
            client.abort_multipart_upload(
                Bucket=s3_case.BUCKET, Key=strange.key("files/00/theirs"), UploadId=other["UploadId"]
            )


class TestJournal:
    """Entries that nobody may replace."""

    def test_of_two_entries_under_one_number_one_wins(self, store: S3Store, tmp_path: Path) -> None:
        """Two machines that publish different entries under one number at once: one succeeds, the other hears of it."""
        assert store._journal.is_conditional()
        stores = [store, elsewhere(store, tmp_path)]
        for each in stores:
            each.publish_journal(100, b"warm")
        start = threading.Barrier(2)

        def work(number: int, seq: int) -> bool:
            start.wait()
            try:
                stores[number].publish_journal(seq, b"of machine %d" % number)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            for seq in range(5):
                won = list(pool.map(work, range(2), [seq] * 2))
                assert any(won)
                if s3_case.is_moto():  # Swift looks first and writes then: at the very same time it may tell both yes
                    assert not all(won)
                kept = dict(store.journal())[seq]
                assert kept in [b"of machine %d" % number for number in range(2) if won[number]]
                for number in range(2):
                    if kept != b"of machine %d" % number:
                        with pytest.raises(ConflictError):
                            stores[number].publish_journal(seq, b"of machine %d" % number)

    @pytest.mark.parametrize("answer", ["ignored", "refused"])
    def test_an_endpoint_without_conditions_still_finds_a_conflict(
        self, store: S3Store, tmp_path: Path, answer: str
    ) -> None:
        """Where `If-None-Match` is ignored or refused, entries are looked at before and after: a conflict is found, a repetition is fine."""

        def rule(asked: Asked) -> Reply | None:
            if asked.header("If-None-Match") is None:
                return None
            if answer == "refused":
                return refusal(501, "NotImplemented")
            asked.drop("If-None-Match")
            return None

        if answer == "ignored" and not s3_case.is_moto():
            pytest.skip("a header that is taken away spoils the signature")
        with faulty() as endpoint:
            endpoint.rule = rule
            other = elsewhere(store, tmp_path, endpoint.url)
            other.publish_journal(1, b"first")
            assert not other._journal.is_conditional()
            other.publish_journal(1, b"first")
            with pytest.raises(ConflictError, match="journal entry 1"):
                other.publish_journal(1, b"other")
        assert list(store.journal()) == [(1, b"first")]


class TestFormat:
    """What says that a prefix is a yard."""

    def put(self, store: S3Store, text: bytes) -> None:
        s3_case.client().put_object(Bucket=s3_case.BUCKET, Key=store.location.key("format"), Body=text)

    def test_a_prefix_without_format_is_no_yard(self, tmp_path: Path) -> None:
        """Opening an empty prefix is not found, and the hint makes a yard of it."""
        with pytest.raises(NotFoundError, match="no yard at") as caught:
            s3_case.make_store(tmp_path, init=False).open()
        assert "yard init --store" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        ("text", "error", "code"),
        [
            (b'{"features":[],"format":"modelyard/store/2"}', InputError, "newer_format"),
            (b'{"features":["new"],"format":"modelyard/store/1"}', InputError, "newer_format"),
            (b"", IntegrityError, "damaged"),
            (b'{"format":"modelyard/store/1"}', IntegrityError, "damaged"),
            (b"{" * 70_000, IntegrityError, "damaged"),
        ],
        ids=["newer", "feature", "empty", "without features", "long"],
    )
    def test_a_yard_of_another_kind_is_refused(
        self, store: S3Store, tmp_path: Path, text: bytes, error: type[YardError], code: str
    ) -> None:
        """A newer or damaged `format` is refused by opening and by making a yard, and is not touched."""
        self.put(store, text)
        other = elsewhere(store, tmp_path)
        for call in (other.open, other.init):
            with pytest.raises(error) as caught:
                call()
            assert caught.value.code == code
        key = store.location.key("format")
        assert s3_case.client().get_object(Bucket=s3_case.BUCKET, Key=key)["Body"].read() == text

    def test_the_first_pack_is_announced(self, store: S3Store) -> None:
        """`format` says that there are packs before the first one is stored, and keeps what else it says."""
        self.put(store, b'{"features":[],"format":"modelyard/store/1","made":"today"}')
        digest = store.put_file([b"a pack"], area="packs").blake3
        found = s3_case.client().get_object(Bucket=s3_case.BUCKET, Key=store.location.key("format"))["Body"].read()
        assert found == b'{"features":["packs"],"format":"modelyard/store/1","made":"today"}\n'
        assert list(store.digests("packs")) == [digest]
        assert list(store.digests("files")) == []


class TestCached:
    """The read cache, as the store uses it."""

    def test_a_file_is_fetched_once(self, store: S3Store, tmp_path: Path) -> None:
        """The second path, a range, the opened file and a verification of a cached file ask the endpoint for no byte."""
        digest = store.put_file([some_bytes(LONG)]).blake3
        with faulty() as endpoint:
            other = elsewhere(store, tmp_path, endpoint.url)
            path = other.file_path(digest)
            assert digest_bytes(path.read_bytes()) == digest
            endpoint.asked.clear()
            assert other.file_path(digest) == path
            assert len(other.read_range("files", digest, 5, 10)) == 5
            assert endpoint.asked == []
            with other.open_file(digest) as stream:
                assert len(stream.read()) == LONG
            other.verify_file(digest)
            assert [method for method, _ in endpoint.asked] == ["HEAD", "HEAD"]

    def test_a_damaged_object_never_enters_the_cache(self, store: S3Store, tmp_path: Path) -> None:
        """Fetching verifies: bytes of another digest are an error that names the object, and no path is given."""
        digest = store.put_file([some_bytes(LONG)]).blake3
        s3_case.overwrite(store, "files", digest, some_bytes(LONG, 1))
        other = elsewhere(store, tmp_path)
        for call in (other.file_path, other.verify_file):
            with pytest.raises(IntegrityError, match=digest[:12]):
                call(digest)
        assert other.cache.size() == 0

    def test_damage_in_the_bucket_is_found_behind_the_cache(self, store: S3Store) -> None:
        """A cached file hides no damage to the object it came from: its ETag is another one then."""
        data = some_bytes(100_000)
        digest = store.put_file([data]).blake3
        store.file_path(digest)
        store.verify_file(digest)
        s3_case.overwrite(store, "files", digest, data[:-1] + bytes([data[-1] ^ 1]))
        for call in (store.verify_file, store.verify_stored):
            with pytest.raises(IntegrityError, match=digest[:12]):
                call(digest)
        with store.open_file(digest) as stream:
            assert digest_bytes(stream.read()) != digest

    def test_a_damaged_cache_heals(self, store: S3Store) -> None:
        """A cached file that was spoilt is fetched again when it is verified, and whole afterwards."""
        digest = store.put_file([some_bytes(100_000)]).blake3
        path = store.file_path(digest)
        path.chmod(0o600)
        path.write_bytes(b"spoilt")
        store.verify_file(digest)
        assert digest_bytes(store.file_path(digest).read_bytes()) == digest

    def test_packs_are_not_cached_by_reading(self, store: S3Store, tmp_path: Path) -> None:
        """Verifying and opening a pack fills no cache: packs are read in ranges."""
        data = some_bytes(LONG)
        digest = store.put_file([data], area="packs").blake3
        other = elsewhere(store, tmp_path)
        other.verify_file(digest, area="packs")
        with other.open_file(digest, area="packs") as stream:
            assert isinstance(stream, io.BufferedReader)
            assert stream.read() == data
        assert other.cache.size() == store.cache.size() == 0

    def test_what_no_request_of_ours_stored_is_stored_again(self, store: S3Store) -> None:
        """An object that somebody copied there, of the right length, is not taken for ours: a commit replaces it."""
        data = some_bytes(1000)
        digest = digest_bytes(data)
        s3_case.overwrite(store, "files", digest, some_bytes(1000, 1))
        assert store.put_file([data]).blake3 == digest
        store.verify_stored(digest)


def test_many_requests_share_one_endpoint(tmp_path: Path) -> None:
    """Storing bytes that are there already asks for them by HEAD alone."""
    with faulty() as endpoint:
        found: FaultyEndpoint = endpoint
        store = s3_case.make_store(tmp_path, url=found.url)
        store.put_file([b"same"])
        found.asked.clear()
        store.put_file([b"same"])
        assert [method for method, _ in found.asked] == ["HEAD"]
