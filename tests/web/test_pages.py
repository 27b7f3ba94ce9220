"""The pages: what they show, what they never let through, and that they load nothing from elsewhere."""

from __future__ import annotations

import re
import shlex
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from modelyard.app import open_yard
from modelyard.evaluation import Example, data_digest
from modelyard.evaluation.statistics import wilson
from modelyard.settings import Settings
from modelyard.web import create, pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelyard.registry import Version, Yard

# starlette's test client asks for another HTTP library than the httpx that the rest of the project uses.
pytestmark = pytest.mark.filterwarnings("ignore::starlette.exceptions.StarletteDeprecationWarning")

SCRIPT = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


def make_report(model: Version, scores: list[int], dataset: Version, **output: str) -> dict[str, Any]:
    """A complete report with these scores."""
    examples = [Example(str(i), [{"role": "user", "content": str(i)}], "yes") for i in range(len(scores))]
    return {
        "format": "modelyard/report/1",
        "model": str(model.id),
        "dataset": str(dataset.id),
        "file": "test.jsonl",
        "data_digest": str(data_digest(examples)),
        "task": {"name": "exact-match", "batch_size": 32},
        "n": len(scores),
        "metrics": {"accuracy": sum(scores) / len(scores)},
        "interval": {"accuracy": list(wilson(sum(scores), len(scores)))},
        "environment": {},
        "examples": [
            {"id": str(i), "expected": "yes", "output": "no", "score": float(score), "prompt_digest": "", **output}
            for i, score in enumerate(scores)
        ],
    }


def commit(yard: Yard, folder: Path, to: str, **options: Any) -> Version:
    """Commit one small file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.txt").write_text(f"{to} {sorted(options)} {len(list(folder.iterdir()))} {options.get('message')}")
    return yard.commit(folder, to, **options)


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    """A yard with a data set, a base and a version made from both; the two models were evaluated on the same examples."""
    made = open_yard(Settings(home=tmp_path / "yard", author="ada"), create=True)
    data = commit(made, tmp_path / "data", "datasets/team/support")
    base = commit(made, tmp_path / "base", "team/base", kind="base")
    mine = commit(
        made,
        tmp_path / "mine",
        "team/intents",
        kind="merged",
        from_=[("merged", base), ("trained-on", data)],
        message="first try",
        metadata={"note": "rank 16"},
    )
    made.add_report(base, make_report(base, [0] * 39 + [1], data))
    made.add_report(mine, make_report(mine, [1] * 36 + [0] * 4, data))
    made.promote(mine, to="production")
    return made


@pytest.fixture
def client(yard: Yard) -> Iterator[TestClient]:
    """A browser without JavaScript."""
    with TestClient(create(yard)) as made:
        yield made


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All visible text, in one line."""
        return " ".join(" ".join(self.texts).split())

    @property
    def links(self) -> list[str]:
        """Every address on the page."""
        return [value for name, value in self.attributes if name in {"href", "src"}]


def get(client: TestClient, path: str, status: int = 200) -> Page:
    """Fetch a page."""
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    return Page(answer.text)


def test_the_first_page_lists_repos(client: TestClient) -> None:
    """Every repo is listed with its type and linked, with the command that says the same."""
    page = get(client, "/")
    assert {"/models/team/base", "/models/team/intents", "/datasets/team/support"} <= set(page.links)
    assert "yard ls" in page.text


def test_an_empty_yard_teaches_the_next_command(tmp_path: Path) -> None:
    """Where there is nothing, the page says how to add something."""
    empty = open_yard(Settings(home=tmp_path / "empty"), create=True)
    with TestClient(create(empty)) as client:
        assert "yard commit ./model --to team/name" in get(client, "/").text


def test_a_repo_lists_versions_with_their_refs(client: TestClient) -> None:
    """A repo's page has each version with its kind, message, author and the aliases and branches at it."""
    page = get(client, "/models/team/intents")
    assert "/models/team/intents/v1" in page.links
    for expected in ("production", "main", "merged", "first try", "ada", "yard log team/intents"):
        assert expected in page.text


def test_a_version_shows_what_it_is(client: TestClient, yard: Yard) -> None:
    """A version's page has its id, files with both digests, metadata, refs and matching commands."""
    version = yard.resolve("team/intents@production")
    page = get(client, "/models/team/intents/v1")
    file = version.files[0]
    for expected in (
        str(version.id),
        file.path,
        str(file.blake3),
        file.sha256,
        "rank 16",
        "production",
        "yard show team/intents@v1",
        "yard eval team/intents@v1 --data datasets/team/support@v1:test.jsonl --task exact-match",
        "yard lineage team/intents@v1",
        "yard checkout team/intents@v1 ./intents",
    ):
        assert expected in page.text


def test_any_reference_leads_to_the_version(client: TestClient, yard: Yard) -> None:
    """An alias, a branch, a number and a digest lead to the same page."""
    version = yard.resolve("team/intents")
    found = {get(client, f"/models/team/intents/{rev}").text for rev in ("production", "main", "v1", version.id.short)}
    assert len(found) == 1


def test_reports_come_with_interval_and_paired_comparison(client: TestClient) -> None:
    """A report shows its metric with the Wilson interval, and the exact test against the base on the same examples."""
    page = get(client, "/models/team/intents/v1")
    low, high = wilson(36, 40)
    assert f"0.900 {low:.3f} to {high:.3f}" in page.text
    assert "Against team/base@v1 on the same examples: +0.875" in page.text
    assert "36 only this version got right, 1 only the other" in page.text
    assert "/datasets/team/support/v1" in page.links
    assert "4 wrong answers" in page.text


def test_lineage_is_a_picture_with_links(client: TestClient) -> None:
    """The lineage is an SVG in the page with a box for each version, linked, and a table that says the same."""
    page = get(client, "/models/team/intents/v1")
    assert page.tags.count("rect") == 3
    assert page.tags.count("marker") == 1
    assert page.links.count("/models/team/base/v1") >= 2
    assert "trained-on" in page.text


def test_a_version_without_reports_says_so(client: TestClient, yard: Yard, tmp_path: Path) -> None:
    """No report is not shown as a good one."""
    commit(yard, tmp_path / "new", "team/new")
    page = get(client, "/models/team/new/v1")
    assert "has not been evaluated" in page.text
    assert "yard eval team/new@v1 --data FILE --task TASK" in page.text


def test_an_incomplete_report_is_shown_as_no_evidence(client: TestClient, yard: Yard) -> None:
    """A report whose accuracy is not the mean of its scores is named, and its numbers are not shown."""
    base, data = yard.resolve("team/base"), yard.resolve("datasets/team/support")
    yard.add_report(base, make_report(base, [0, 1], data) | {"metrics": {"accuracy": 0.987}})
    page = get(client, "/models/team/base/v1")
    assert "A report is no evidence" in page.text
    assert not re.search(r"0\.987\s+0\.\d{3} to", page.text)


def test_hostile_strings_stay_text(client: TestClient, yard: Yard, tmp_path: Path) -> None:
    """A message, author's note, metric, answer or label that is HTML is shown as text, on every page it is on."""
    data = yard.resolve("datasets/team/support")
    options: dict[str, Any] = {"message": SCRIPT, "metadata": {"note": SCRIPT}, "from_": [("trained-on", data)]}
    version = commit(yard, tmp_path / "evil", "team/evil", **options)
    report = make_report(version, [0] * (pages.EXAMPLES + 5), data, expected=SCRIPT, output=SCRIPT, id="x")
    report["examples"] = [{**example, "id": f"{i} {SCRIPT}"} for i, example in enumerate(report["examples"])]
    report["metrics"][SCRIPT] = 0.5
    report["task"] = {"name": f"{SCRIPT}; reboot"}
    report["file"] = "$(reboot)"
    yard.add_report(version, report)
    for path in ("/models/team/evil", "/models/team/evil/v1"):
        page = get(client, path)
        assert {"script", "img", "style", "iframe", "form"}.isdisjoint(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
        assert SCRIPT in page.text
    text = get(client, "/models/team/evil/v1").text
    assert "5 more are in the report" in text
    words = shlex.split(text[text.index("yard eval") : text.index("Lineage")])
    assert "datasets/team/support@v1:$(reboot)" in words
    assert f"{SCRIPT}; reboot" in words


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/models/team/missing", 404),
        ("/models/team/intents/v9", 404),
        ("/models/team/intents/nothere", 404),
        ("/spaces/team/intents", 404),
        ("/models/team/in<b>tents", 400),
        ("/models/team/intents/a%20b%3Cscript%3E", 400),
        ("/models/team/intents?before=x", 400),
        ("/models/team/intents?before=%D9%A3", 400),
        ("/?after=%3Cscript%3E", 400),
        ("/?after=../etc", 400),
    ],
)
def test_a_wrong_address_is_a_page_with_the_reason(client: TestClient, path: str, status: int) -> None:
    """What does not exist is 404, what cannot be is 400, and both are pages that lead back, without its markup."""
    page = get(client, path, status)
    assert "/" in page.links
    assert {"script", "b"}.isdisjoint(page.tags)


def test_a_near_match_is_offered(client: TestClient) -> None:
    """The page for a mistyped repo names the one that was probably meant."""
    assert "team/intents" in get(client, "/models/team/intnets", 404).text


@pytest.mark.parametrize("path", ["/", "/models/team/intents/v1", "/nothing", "/static/style.css", "/static/nothing"])
def test_every_answer_has_the_policy(client: TestClient, path: str) -> None:
    """Pages, errors and files all carry the strict policy: everything from here, nothing inline."""
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/models/team/intents", "/models/team/intents/v1", "/nothing"])
def test_nothing_is_inline_or_from_elsewhere(client: TestClient, path: str) -> None:
    """No page has a script, an inline style or an address outside the app."""
    page = Page(client.get(path).text)
    assert {"script", "style"}.isdisjoint(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert all(link.startswith(("/", "#")) and not link.startswith("//") for link in page.links)


def test_every_link_leads_somewhere(client: TestClient) -> None:
    """Following every link from the first page finds no broken one."""
    seen: set[str] = set()
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith("#"):
            continue
        seen.add(path)
        answer = client.get(path)
        assert answer.status_code == 200, path
        if answer.headers["content-type"].startswith("text/html"):
            waiting += Page(answer.text).links
    assert len(seen) >= 9


def test_only_reading_is_answered(client: TestClient) -> None:
    """POST, PUT and DELETE are refused on every page."""
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/models/team/intents/v1").status_code == 405


def test_the_app_works_under_a_prefix(yard: Yard) -> None:
    """Mounted below a path, every address stays below it."""
    app = Starlette(routes=[Mount("/web", create(yard))])
    with TestClient(app) as client:
        page = get(client, "/web/models/team/intents/v1")
        assert all(link.startswith(("/web/", "#")) for link in page.links)
        assert client.get("/web/static/style.css").status_code == 200


def test_the_host_header_is_never_shown(client: TestClient) -> None:
    """A forged Host header ends up in no address."""
    assert "evil.example" not in client.get("/", headers={"host": "evil.example"}).text


def test_long_lists_have_pages(client: TestClient, yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More versions or repos than fit on a page continue on the next one, each shown once."""
    monkeypatch.setattr(pages, "PAGE", 3)
    for index in range(5):
        commit(yard, tmp_path / "many", "team/many", message=f"number {index}")
    first = get(client, "/models/team/many")
    following = [link for link in first.links if "before=" in link]
    second = get(client, following[0])
    shown = [link for page in (first, second) for link in page.links if re.fullmatch(r"/models/team/many/v\d+", link)]
    assert len(shown) == len(set(shown)) == 5
    assert not [link for link in second.links if "before=" in link]
    repos = get(client, "/")
    more = [link for link in repos.links if "after=" in link]
    listed = [link for page in (repos, get(client, more[0])) for link in page.links if link.count("/") == 3]
    assert len(listed) == len(set(listed)) == 4
