"""A folder's files: listed, read and refused."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from modelyard.errors import ModelError, NotFoundError
from modelyard.weights import Files, FolderFiles
from modelyard.weights.files import check_name, show_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, and a file in a folder."""
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "sub" / "x.txt").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    return made


def code_of(files: Files, name: str) -> str:
    """The code with which reading `name` is refused."""
    with pytest.raises(ModelError) as caught:
        files.read(name)
    return caught.value.code


def test_lists_sorted_by_bytes(folder: Path) -> None:
    """Names are relative, with slashes, in the order of their bytes; what tools keep for themselves is left out."""
    for name in ("Z", "a", "é", ".git/HEAD", ".cache/huggingface/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    assert FolderFiles(folder).names() == ["Z", "a", "config.json", "sub/x.txt", "é"]


def test_reads_sizes_and_paths(folder: Path) -> None:
    """A file's size, bytes and path are its own."""
    files = FolderFiles(folder)
    assert (files.size("sub/x.txt"), files.read("sub/x.txt")) == (6, b"inside")
    assert files.path("sub/x.txt").read_text() == "inside"
    assert isinstance(files, Files)


def test_reading_is_bounded(folder: Path) -> None:
    """A file over the limit is refused, one at the limit is read."""
    files = FolderFiles(folder)
    assert files.read("sub/x.txt", 6) == b"inside"
    with pytest.raises(ModelError) as caught:
        files.read("sub/x.txt", 5)
    assert caught.value.code == "file_too_large"


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "sub/../../secret", "C:\\x", "\\\\host\\share", "a\0b", "", ".", "a//b"]
)
def test_names_that_leave_the_folder(folder: Path, name: str) -> None:
    """A name with `..`, an absolute one, a drive, a UNC path or a NUL is refused before any file is touched."""
    assert code_of(FolderFiles(folder), name) == "unsafe_path"


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "config.json", "missing"])
def test_links_are_refused(folder: Path, target: str) -> None:
    """A symbolic link is refused wherever it leads, when listed and when read; the message says if it leads out."""
    (folder / "link").symlink_to(target)
    files = FolderFiles(folder)
    assert code_of(files, "link") == "not_a_regular_file"
    with pytest.raises(ModelError, match="out of the folder" if target[0] in "./" else "symbolic link"):
        files.names()


def test_linked_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """A link to a folder is not walked into."""
    (folder / "linked").symlink_to(tmp_path)
    assert code_of(FolderFiles(folder), "linked/secret") == "not_a_regular_file"
    with pytest.raises(ModelError):
        FolderFiles(folder).names()


def test_links_within_a_cache_are_followed(tmp_path: Path) -> None:
    """With `links_within`, a link into that folder is a file, and one out of it is still refused."""
    snapshot = tmp_path / "cache" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "cache" / "blobs").mkdir()
    (tmp_path / "cache" / "blobs" / "abc").write_text("blob")
    (tmp_path / "secret").write_text("")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    files = FolderFiles(snapshot, links_within=tmp_path / "cache")
    assert files.names() == ["config.json"]
    assert files.read("config.json") == b"blob"
    (snapshot / "out").symlink_to(tmp_path / "secret")
    assert code_of(files, "out") == "not_a_regular_file"


def test_fifo_and_socket_are_refused_at_once(folder: Path) -> None:
    """A FIFO nobody writes to does not hang, and a socket is no file."""
    os.mkfifo(folder / "fifo")
    assert code_of(FolderFiles(folder), "fifo") == "not_a_regular_file"
    with pytest.raises(ModelError, match="FIFO") as caught:
        FolderFiles(folder).names()
    assert caught.value.hint == f"remove it: rm {folder / 'fifo'}"  # a copy of the folder would hold it again
    (folder / "fifo").unlink()
    here = Path.cwd()
    try:
        os.chdir(folder)  # a socket's path is at most 108 bytes
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("s")
    finally:
        os.chdir(here)
    with pytest.raises(ModelError, match="socket"):
        FolderFiles(folder).names()


def test_missing_file_names_a_near_match(folder: Path) -> None:
    """A file that is not there is a `NotFoundError`, with the name that was probably meant."""
    with pytest.raises(NotFoundError) as caught:
        FolderFiles(folder).path("confg.json")
    assert "config.json" in str(caught.value.hint)


def test_folder_is_not_a_file(folder: Path) -> None:
    """A folder's name is refused as a file, and a file is refused as a folder."""
    assert code_of(FolderFiles(folder), "sub") == "not_a_regular_file"
    with pytest.raises(ModelError) as caught:
        FolderFiles(folder / "config.json")
    assert caught.value.code == "not_a_folder"


def test_names_are_shown_harmless() -> None:
    """What is printed of a name has no control character, no change of direction, and an end."""
    shown = show_name("\x1b[31m\u202e\n" + "x" * 500)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 120


def test_lone_surrogate_in_a_name_is_unsafe() -> None:
    """A name that is no Unicode text is refused."""
    with pytest.raises(ModelError):
        check_name("a\udc80", "x")
