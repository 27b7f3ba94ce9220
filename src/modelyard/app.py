"""The one composition root: settings become a `Yard`.

It alone knows which store, which catalog and which judge are used together, and where in a yard's folder they live::

    <home>/          the local store: files/ manifests/ reports/ journal/ tmp/ format
    <home>/catalog.db    the catalog, unless `catalog_url` says PostgreSQL
    <home>/links/        loaded versions as hard links to files/, or to cache/files/
    <home>/yard.json     where the store and the catalog are, when that is not this folder: `s3://...`, `postgresql://...`
    <home>/cache/        what was read from a store that is not this folder
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from modelyard.catalog import Catalog
    from modelyard.catalog.move import Moved
    from modelyard.registry import Verdict, Yard
    from modelyard.registry.merging import Bench
    from modelyard.registry.rebuild import Rebuilt
    from modelyard.settings import Places, Settings
    from modelyard.store import LocalStore
    from modelyard.store.s3 import S3Store
    from modelyard.weights.model import Model

__all__ = [
    "catalog_of",
    "hub_access",
    "load",
    "move_catalog",
    "open_bench",
    "open_yard",
    "rebuild_catalog",
    "upgrade_catalog",
]


def open_yard(settings: Settings, create: bool = False) -> Yard:
    """The yard in `settings.home`.

    Args:
        settings: Where it is and who asks.
        create: Make it when there is none, and upgrade an older catalog.

    Raises:
        NotFoundError: There is none, and `create` is off.
        ConflictError: The yard's bytes are elsewhere than the settings say.
        AuthError: The store is on S3, and the key is missing or not allowed to use it.
        YardError: The catalog or the store is of a newer program; both revisions are named.
    """
    from dataclasses import replace
    from functools import partial

    from modelyard.registry import Yard
    from modelyard.settings import Places
    from modelyard.store import LocalStore

    home = settings.home
    places = Places.read(home)
    store = _store_of(settings, places)
    store = store.init() if create else store.open()
    if create and (settings.store_url or settings.catalog_url):
        # After the store answered: a wrong URL or key is not recorded.
        where = None if isinstance(store, LocalStore) else str(store.location)
        replace(places, store=where, catalog=settings.catalog_url or places.catalog).write(home)
    catalog = catalog_of(settings)
    yard = Yard(
        store,
        catalog,
        author=settings.author,
        judge=_judge,
        check_gate=_check_gate,
        links=home / "links",
        hub=partial(hub_access, settings),
    )
    return yard.init() if create else yard.open()


def hub_access(settings: Settings) -> dict[str, Any]:
    """What the surroundings say about the hub, as `weights.hub.fetch` is told: `endpoint`, `cache_dir`, `token`, `offline`.

    The token is that of HF_TOKEN, else the one that `yard login` or another tool stored; False where there is none. A
    variable that was renamed is taken with a `DeprecatedNameWarning` that shows the modern name.
    """
    from modelyard.weights.loading.legacy import accept_environment

    found = {**settings.hub_variables, **accept_environment(settings.hub_variables)}
    cache = found.get("HF_HUB_CACHE")
    home = settings.hub_home / "hub" if settings.hub_home is not None else None
    return {
        "endpoint": found.get("HF_ENDPOINT"),
        "cache_dir": settings.expanded(cache) if cache else home,
        "token": _token(settings, found) or False,
        "offline": settings.offline or settings.is_on(found.get("HF_HUB_OFFLINE")),
    }


def _token(settings: Settings, variables: Mapping[str, str]) -> str | None:
    from modelyard.errors import AuthError

    if settings.is_on(variables.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        return None
    if variables.get("HF_TOKEN", "").strip():
        return variables["HF_TOKEN"].strip()
    path = settings.hub_token_path
    if path is None:
        return None
    try:
        return path.read_text("utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(
            f"the token in `{path}` cannot be read: {error}", hint="yard logout, then yard login", code="hub_token"
        ) from error


def load(settings: Settings, source: Path | str, **options: Any) -> Model:
    """Load a folder, a .gguf file or a hub's model without a yard; see `modelyard.load`.

    Raises:
        RefError: `source` is a yard's reference, which only a yard can resolve.
        ModelError, NotFoundError, AuthError, RequestError: As `weights.load.load` and `weights.hub.fetch`.
    """
    from modelyard.weights import hub
    from modelyard.weights.collector import collector_paused
    from modelyard.weights.loading.legacy import modern_names

    given = modern_names(options, of=_HUB_OPTIONS)
    access = {**hub_access(settings), **{name: given.pop(name) for name in _HUB_OPTIONS if name in given}}
    found = _local(source, access, "source")
    if given.get("base") is not None:
        given["base"] = _local(given["base"], access, "base")
    elif found.is_dir() and (base := hub.named_base(found, source)):
        given["base"] = _local(base, {**access, "revision": None}, "base")
    if isinstance(given.get("adapters"), dict):
        given["adapters"] = {
            name: _local(each, {**access, "revision": None}, "adapters") for name, each in given["adapters"].items()
        }
    with collector_paused():
        from modelyard.weights.load import load as load_folder

        return load_folder(found, **given)


def open_bench(settings: Settings) -> Bench:
    """What makes new weights from folders and hubs' models, to folders: no yard is opened or made."""
    from modelyard.registry.merging import Bench
    from modelyard.weights import hub

    def fetch(source: str, **options: Any) -> Path:
        return hub.fetch(source, **{**hub_access(settings), **options})

    return Bench(fetch)


_HUB_OPTIONS = ("cache_dir", "revision", "token", "offline")


def _local(source: Path | str, access: Mapping[str, Any], field: str) -> Path:
    """The path that a source means; a hub's model is fetched."""
    from pathlib import Path

    from modelyard.errors import RefError, RequestError
    from modelyard.weights import hub
    from modelyard.weights.sources import source_form

    form = source_form(source)
    if form == "hub":
        return hub.fetch(str(source), **access)
    if form == "reference" and not Path(source).exists():
        raise RefError(
            f"`{source}` is a version of a yard, or a folder that is not here",
            hint=f"a version: modelyard.open().load({str(source)!r}); a folder: ./{source}; a hub's: hf://{source}",
            field=field,
        )
    if access.get("revision") is not None:
        raise RequestError(f"`{source}` is a path, which has no revisions", hint="leave `revision` out")
    return Path(source).expanduser()


def _store_of(settings: Settings, places: Places) -> LocalStore | S3Store:
    """The store that the settings name, else the one that the yard's folder records, else that folder; unopened."""
    from modelyard.errors import AuthError, ConflictError
    from modelyard.store import LocalStore

    url = settings.store_url or places.store
    if url is None:
        return LocalStore(settings.home)
    from modelyard.store.s3 import CACHE_BYTES, S3Store
    from modelyard.store.s3_location import S3Credentials, S3Location

    recorded = S3Location.parse(places.store) if places.store else None
    given = S3Location.parse(url, endpoint=settings.endpoint, region=settings.region)
    # What the folder records is complete; the surroundings complete only what they give themselves.
    location = recorded if recorded is not None and settings.store_url is None else given
    present = f"at `{recorded}`" if recorded else "in that folder"
    if recorded not in {None, location} or (places.store is None and (settings.home / "format").exists()):
        # Its catalog knows what is there: pointed elsewhere, all of it would be missing.
        raise ConflictError(
            f"the yard `{settings.home}` keeps its bytes {present}, not at `{location}`",
            hint="make a yard in another folder: `yard init FOLDER --store URL`",
        )
    if settings.access_key is None or settings.secret_key is None:
        raise AuthError(f"no key for the store `{location}`", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return S3Store(
        location,
        S3Credentials(settings.access_key, settings.secret_key, settings.session_token),
        settings.home.absolute() / "cache",
        cache_bytes=settings.cache_bytes or CACHE_BYTES,
    )


def move_catalog(settings: Settings, url: str, progress: Callable[[int, int], None] | None = None) -> Moved:
    """Move the yard's catalog to another database, and note in the yard's folder (`yard.json`) that it is there now.

    Interrupted, it leaves one of the two in charge (`catalog.move`); run it again.

    Args:
        settings: Where the yard is and who asks.
        url: An empty database: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`. It is kept as given.
        progress: Called with the rows copied so far, and all of them.

    Raises:
        InputError: The target holds something, or is the present one.
        YardError: There is no catalog to move, or it is of another revision.
    """
    from dataclasses import replace
    from datetime import UTC, datetime

    from modelyard.catalog import Catalog
    from modelyard.catalog.move import move
    from modelyard.settings import Places

    source, target = catalog_of(settings), Catalog(url)
    moved = move(source, target, author=settings.author, at=datetime.now(UTC), progress=progress)
    # The old one refuses everybody from here on; until the next line is durable, it says where the new one is.
    kept = target.address if url.startswith("sqlite:") else url
    replace(Places.read(settings.home), catalog=kept).write(settings.home)
    return moved


def upgrade_catalog(settings: Settings, *, have_backup: bool = False) -> str:
    """Bring the yard's catalog to this program's revision, which is returned.

    Raises:
        InputError: A catalog on PostgreSQL without `have_backup`: nothing but its owner can copy it first.
        YardError: The catalog is of a newer program, or was moved.
    """
    from modelyard.catalog import revision
    from modelyard.errors import YardError

    catalog = catalog_of(settings)
    try:
        catalog.open()
    except YardError as error:
        if error.code != "catalog_older":
            raise
        catalog.init(have_backup=have_backup)
    return revision.HEAD


def rebuild_catalog(
    settings: Settings, *, force: bool = False, progress: Callable[[int], object] | None = None
) -> Rebuilt:
    """Make the yard's lost catalog again from its store; see `registry.rebuild`.

    Raises:
        NotFoundError: There is no yard.
        ConflictError: The catalog is there and holds something.
        IntegrityError: Something that it needs is damaged or missing, and `force` is off.
    """
    from modelyard.registry.rebuild import rebuild
    from modelyard.settings import Places

    store = _store_of(settings, Places.read(settings.home)).open()
    return rebuild(store, catalog_of(settings), force=force, progress=progress)


def catalog_of(settings: Settings) -> Catalog:
    """The catalog that the settings name, else the one that the yard's folder records, else the one in that folder."""
    from modelyard.catalog import Catalog
    from modelyard.settings import Places

    home = settings.home.absolute()
    return Catalog(settings.catalog_url or Places.read(home).catalog or f"sqlite:///{home / 'catalog.db'}")


def _judge(
    gate: Mapping[str, Any],
    *,
    candidate: str,
    reports: Sequence[Mapping[str, Any]],
    baseline: str | None,
    baseline_reports: Sequence[Mapping[str, Any]],
) -> Verdict:
    # Imported when a gate is judged: listing a yard needs no statistics.
    from modelyard.evaluation.gates import judge

    return judge(gate, candidate=candidate, reports=reports, baseline=baseline, baseline_reports=baseline_reports)


def _check_gate(gate: Mapping[str, Any]) -> Mapping[str, Any]:
    from modelyard.evaluation.gates import parse_gate

    return parse_gate(gate).model_dump(exclude_none=True)
