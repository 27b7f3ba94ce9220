"""What `huggingface_hub` says of a model that cannot be had, as one typed error for each cause, with the next step.

A hub answers somebody without a token alike for what is absent and for what is private, so that is one error, `hub_private`.
Knows answers of a hub; sends one question of its own, for the names of a model's revisions.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelyard.errors import AuthError, InputError, NotFoundError, YardError, near_match

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelyard.weights.hub import HubSource
    from modelyard.weights.hub.cache import Access

__all__ = ["explain", "translated"]

_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105  # the hub's own words


@contextmanager
def translated(source: HubSource, access: Access) -> Iterator[None]:
    """Raise in place of any error of `huggingface_hub` the one that it means; see `hub.fetch`."""
    import httpx2
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        yield
    except YardError:
        raise
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, httpx2.HTTPError, OSError) as error:
        raise explain(error, source, access) from error


def explain(error: BaseException, source: HubSource, access: Access) -> YardError:
    """The error that `error` means for somebody who asked for `source`."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return explain(error.__cause__, source, access)
    # The most special first: a gated repo is one that was not found, and each of these is an error of HTTP.
    meanings: tuple[tuple[type[BaseException], Callable[[Any, HubSource, Access], YardError]], ...] = (
        (errors.GatedRepoError, _gated),
        (errors.DisabledRepoError, _disabled),
        (errors.RevisionNotFoundError, _no_revision),
        (errors.RepositoryNotFoundError, _no_repo),
        (errors.HfHubHTTPError, _refused),
        (errors.HFValidationError, _invalid),
    )
    meaning = next((meaning for kind, meaning in meanings if isinstance(error, kind)), _unreachable)
    return meaning(error, source, access)


def _disabled(_error: Any, source: HubSource, _access: Access) -> NotFoundError:
    return NotFoundError(f"`{source}` was disabled by the hub", hint="take another model", code="hub_disabled")


def _invalid(error: Any, source: HubSource, _access: Access) -> InputError:
    return InputError(f"`{source}`: {_first_line(error)}", hint="write `hf://org/name`", code="hub_failed")


def _unreachable(error: Any, source: HubSource, access: Access) -> InputError:
    return InputError(
        f"`{source}`: the hub{_at(access)} cannot be reached: {_first_line(error)}",
        hint="check HF_ENDPOINT and the network; with HF_HUB_OFFLINE=1 what the cache holds is used",
        code="hub_unreachable",
    )


def _gated(_error: Any, source: HubSource, access: Access) -> AuthError:
    page = f"{_endpoint(access)}/{source.repo}"
    if _has_token(access):
        return AuthError(
            f"`{source}` is gated, and this account has not been let in",
            hint=f"accept its terms at {page}, then run it again",
            code="hub_gated",
            terms=page,
        )
    return AuthError(
        f"`{source}` is gated: the hub gives it to accounts that accepted its terms",
        hint=f"accept its terms at {page}, then run `yard login`",
        code="hub_gated",
        terms=page,
    )


def _no_repo(error: Any, source: HubSource, access: Access) -> YardError:
    if _status(error) == 401 and not _has_token(access):
        return AuthError(
            f"`{source}` is private, or there is no such model: the hub says so of both without a token",
            hint="check the id, then run `yard login`",
            code="hub_private",
        )
    if _has_token(access):
        return NotFoundError(
            f"`{source}`: the hub has no such model that this account may see",
            hint="check the id, or `yard login` with a token of an account that may see it",
            code="hub_absent",
        )
    return NotFoundError(f"`{source}`: the hub has no such model", hint="check the id", code="hub_absent")


def _refused(error: Any, source: HubSource, access: Access) -> YardError:
    status, said = _status(error), _said(error)
    if status == 401 and (_has_token(access) or said == _BAD_TOKEN):
        return AuthError(
            f"`{source}`: the hub does not accept the token", hint="run `yard login` again", code="hub_token"
        )
    if status in {401, 403}:
        return AuthError(
            f"`{source}`: the hub refuses{f': {said}' if said else ''}",
            hint="run `yard login` with a token that may read it",
            code="hub_forbidden",
        )
    if status == 404:
        # No repo, no revision, no entry: whatever answers there does not speak the hub's protocol.
        return InputError(
            f"`{source}`: `{_endpoint(access)}` does not answer as a hub does",
            hint="check HF_ENDPOINT",
            code="hub_failed",
        )
    return InputError(
        f"`{source}`: the hub answered {status or 'nothing usable'}{f': {said}' if said else ''}",
        hint="try again in a moment; with HF_HUB_OFFLINE=1 what the cache holds is used",
        code="hub_failed",
        status=status,
    )


def _no_revision(_error: Any, source: HubSource, access: Access) -> NotFoundError:
    """With the revisions that there are, where the hub tells them."""
    from huggingface_hub import HfApi

    names: list[str] = []
    with suppress(Exception):  # only for the hint: the answer is the same without it
        refs = HfApi(endpoint=access.endpoint, token=access.token).list_repo_refs(source.repo)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    meant = near_match(source.revision or "", names)
    if meant:
        hint = f"did you mean `{replace(source, revision=meant)}`?"
    elif names:
        hint = f"it has {', '.join(names[:8])}"
    else:
        hint = "leave out `@...` for the default"
    return NotFoundError(f"`{source}`: the hub has no such revision", hint=hint, code="hub_revision", revisions=names)


def _has_token(access: Access) -> bool:
    if access.token is None:
        from huggingface_hub import get_token

        return get_token() is not None
    return bool(access.token)


def _endpoint(access: Access) -> str:
    if access.endpoint:
        return access.endpoint.rstrip("/")
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _at(access: Access) -> str:
    return f" at `{access.endpoint}`" if access.endpoint else ""


def _status(error: Any) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return int(status) if status is not None else None


def _said(error: Any) -> str | None:
    text = getattr(error, "server_message", None) or error.response.headers.get("X-Error-Message")
    return str(text).strip().split("\n")[0][:300] if text else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
