"""`yard login` and `yard logout`: a hub's token, kept where every tool finds it and shown nowhere."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.app import hub_access
from modelyard.cli.main import run
from modelyard.settings import Settings
from weights.hub_stub import HubStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

READER = "hf_reader-token"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    """A hub that knows two accounts, as this process's endpoint; nothing is stored yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with HubStub({}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `yard login --token-stdin --json` with a text on standard input: exit code, standard output, standard error."""

    def call(text: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code = run(["login", "--token-stdin", *arguments, "--json"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_token_is_stored_for_this_account_alone(
    stub: HubStub, login: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """The file has mode 0600 in a folder of mode 0700, the account is told, and the token is printed nowhere."""
    code, out, err = login(f"{READER}\n")
    path = tmp_path / "hf" / "token"
    assert code == 0
    assert json.loads(out) == {"account": "reader", "path": str(path), "checked": True}
    assert READER not in out + err
    assert path.read_text() == READER
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stub.asked == ["GET /api/whoami-v2"]


def test_a_folder_that_others_use_keeps_its_mode(
    stub: HubStub, login: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """HF_HOME may be a cache that a group shares: only the token in it is closed to them."""
    shared = tmp_path / "hf"
    shared.mkdir()
    shared.chmod(0o775)
    assert login(READER)[0] == 0
    assert stat.S_IMODE(shared.stat().st_mode) == 0o775
    assert stat.S_IMODE((shared / "token").stat().st_mode) == 0o600


@pytest.mark.parametrize("umask", [0o000, 0o277, 0o777])
def test_modes_are_the_same_under_any_umask(
    stub: HubStub,
    login: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    umask: int,
) -> None:
    """The file is 0600 and every folder that was made for it 0700, for an open umask and for one that takes all away."""
    path = tmp_path / "deep" / "down" / "token"
    monkeypatch.setenv("HF_TOKEN_PATH", str(path))
    before = os.umask(umask)
    try:
        code, _, _ = login(READER)
    finally:
        os.umask(before)
    assert code == 0
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parent.parent)] == [
        0o600,
        0o700,
        0o700,
    ]


def test_a_folder_in_the_tokens_place_is_named(
    stub: HubStub, login: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """It is told before anything is written, and logging out there is no error."""
    (tmp_path / "hf" / "token").mkdir(parents=True)
    code, _, err = login(READER)
    assert code == 1
    assert "HF_TOKEN_PATH" in err
    assert run(["logout"]) == 0
    assert (tmp_path / "hf" / "token").is_dir()


def test_other_tools_and_the_settings_find_it(
    stub: HubStub, login: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """huggingface_hub in a process of its own reads the stored token, and so do our settings; logout takes it from both."""
    login(READER)
    ask = [sys.executable, "-c", "from huggingface_hub import get_token; print(get_token())"]
    found = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == READER
    assert hub_access(Settings.from_environment())["token"] == READER
    assert run(["logout"]) == 0
    assert hub_access(Settings.from_environment())["token"] is False
    assert not (tmp_path / "hf" / "token").exists()
    assert run(["logout"]) == 0


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("hf_not-known-here\n", 4, "hub_token"),
        ("\n", 1, "bad_input"),
        ("two words\n", 1, "bad_input"),
        ("short", 1, "bad_input"),
    ],
)
def test_what_is_not_accepted_is_not_stored(
    stub: HubStub,
    login: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    text: str,
    code: int,
    named: str,
) -> None:
    """A token that the hub does not know, and a text that is none, leave what was stored before; neither is repeated."""
    login(READER)
    failed, out, err = login(text)
    assert failed == code
    assert json.loads(err)["error"]["code"] == named
    assert text.strip() == "" or text.strip() not in out + err
    assert (tmp_path / "hf" / "token").read_text() == READER


def test_a_token_is_no_argument(capsys: pytest.CaptureFixture[str], stub: HubStub) -> None:
    """The command takes no token: other users of the machine see arguments."""
    assert run(["login", READER]) == 2
    assert stub.asked == []
    capsys.readouterr()


def test_without_a_terminal_it_says_how(
    stub: HubStub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody can be asked, the error is the command that reads standard input."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run(["login"]) == 1
    assert "--token-stdin" in capsys.readouterr().err


def test_offline_it_is_stored_unchecked(
    stub: HubStub, login: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With HF_HUB_OFFLINE nobody is asked, and the answer says that it was not checked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = login(READER)
    assert (code, json.loads(out)["checked"], stub.asked) == (0, False, [])
    assert (tmp_path / "hf" / "token").read_text() == READER


def test_an_endpoint_that_does_not_answer_stores_nothing(
    stub: HubStub, login: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whose token it is cannot be asked: the error names the endpoint and the way to store it unchecked."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = login(READER)
    error = json.loads(err)["error"]
    assert (code, error["code"]) == (1, "hub_unreachable")
    assert "127.0.0.1:9" in error["message"]
    assert "HF_HUB_OFFLINE=1" in error["hint"]
    assert READER not in err
    assert not (tmp_path / "hf" / "token").exists()


def test_the_surroundings_say_where_the_hub_is(tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and HF_TOKEN_PATH become arguments."""
    plain = hub_access(Settings.from_environment({"HOME": "/nobody"}, home=tmp_path))
    assert plain == {
        "endpoint": None,
        "cache_dir": tmp_path / ".cache" / "huggingface" / "hub",
        "token": False,
        "offline": False,
    }
    (tmp_path / "elsewhere").write_text("hf_from-a-file\n")
    variables: dict[str, Any] = {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN_PATH": str(tmp_path / "elsewhere")}
    assert hub_access(Settings.from_environment(variables, home=tmp_path))["token"] == "hf_from-a-file"
    assert hub_access(Settings.from_environment(variables, home=tmp_path))["cache_dir"] == tmp_path / "hf" / "hub"
    variables |= {"HF_TOKEN": "hf_said", "HF_HUB_CACHE": "/cache", "HF_HUB_OFFLINE": "yes", "HF_ENDPOINT": "http://hub"}
    told = hub_access(Settings.from_environment(variables, home=tmp_path))
    assert {**told, "cache_dir": str(told["cache_dir"])} == {
        "endpoint": "http://hub",
        "cache_dir": "/cache",
        "token": "hf_said",
        "offline": True,
    }


def test_a_variable_of_yesterday_is_taken_and_its_name_of_today_shown(tmp_path: Path) -> None:
    """TRANSFORMERS_CACHE still says where the cache is, with a warning that names HF_HUB_CACHE, which goes before it."""
    old = {"TRANSFORMERS_CACHE": "/old"}
    with pytest.warns(FutureWarning, match="HF_HUB_CACHE"):
        assert str(hub_access(Settings.from_environment(old, home=tmp_path))["cache_dir"]) == "/old"
    both = Settings.from_environment({**old, "HF_HUB_CACHE": "/new"}, home=tmp_path)
    assert str(hub_access(both)["cache_dir"]) == "/new"


def test_a_token_is_in_no_text_of_the_settings() -> None:
    """What is printed of settings, in a traceback or a log, holds no token."""
    assert "hf_secret" not in repr(Settings.from_environment({"HF_TOKEN": "hf_secret-token", "HOME": "/x"}))
