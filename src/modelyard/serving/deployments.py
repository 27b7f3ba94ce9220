"""What the server keeps loaded: each reference it was given, followed to the version that it names now.

A `Deployment` asks the yard twice a second where its alias or branch stands. When it moved, the new version's worker is
started and probed beside the old one, then routing changes in one step, then the old one drains: a request belongs to
one version from its beginning to its end. When the new version cannot be served, the old one goes on serving and the
reason is shown. `Fleet` is all of them, and finds the one that a request's `model` means.

It belongs to the router's event loop; calls to the yard block and so run in one thread. It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from modelyard.errors import InternalError, NotFoundError, YardError, near_match
from modelyard.serving.records import Records
from modelyard.serving.replicas import Pool, Replica, WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelyard.registry import Version, Yard

__all__ = ["Deployment", "Fleet"]

logger = logging.getLogger(__name__)

_PINNED = re.compile(r"v\d+|[0-9a-f]{8,64}")
_LONGEST_RETRY = 60.0
_HEARTBEAT_SECONDS = 5.0

Value = TypeVar("Value")


class Deployment:
    """One reference of the command line and the version it is served from.

    Attributes:
        reference: As it was given.
        replica: What new requests go to.
        moving_to: The version whose worker is being started to take over, if any.
        error: Why the version that the reference names now is not the one that is served.
        swaps: Outcomes so far, by `done` and `failed`.
        since: When the version that is served took over.
    """

    def __init__(self, reference: str, version: Version) -> None:
        self.reference = reference
        self.wanted = version
        self.replica: Replica | None = None
        self.moving_to: Version | None = None
        self.error: YardError | None = None
        self.swaps = {"done": 0, "failed": 0}
        self.since = datetime.now(UTC)
        _, _, rev = reference.partition("@")
        self.follows = not _PINNED.fullmatch(rev)
        self._retry_at = 0.0
        self._retry_delay = 1.0

    @property
    def version(self) -> Version:
        """The version that answers now; before the first start, the one that will."""
        return self.replica.version if self.replica else self.wanted

    @property
    def ready(self) -> bool:
        """Whether a request would be taken."""
        return self.replica is not None and self.replica.state == "ready"

    @property
    def names(self) -> tuple[str, ...]:
        """The pinned names under which the version that answers now can be asked for."""
        version = self.version
        return (
            version.name,
            f"{version.repo}@{version.id.short}",
            f"{version.repo}@{version.id}",
            version.id.short,
            version.id,
        )

    def describe(self) -> dict[str, Any]:
        """The state as plain values, for `/ready` and `yard ps`."""
        replica = self.replica
        problem = self.error or (replica.error if replica else None)
        process = replica.process if replica else None
        return {
            "reference": self.reference,
            "ref": self.version.name,
            "version": str(self.version.id),
            "state": replica.state if replica else "starting",
            "since": self.since.isoformat(),
            "pid": process.pid if process and not process.gone.is_set() else None,
            "memory_bytes": process.resident if process else 0,
            "in_flight": replica.admission.held if replica else 0,
            "queued": replica.admission.waiting if replica else 0,
            "restarts": replica.restarts if replica else 0,
            "moving_to": self.moving_to.name if self.moving_to else None,
            "error": problem.message if problem else None,
        }

    async def start(self, pool: Pool) -> None:
        """Load the first version; raises why it cannot be served."""
        self.replica = await pool.acquire(self.wanted)
        self.since = datetime.now(UTC)

    async def move(self, version: Version, pool: Pool) -> None:
        """Serve `version` from now on, or note why not and keep serving the old one."""
        if version.id == self.version.id:
            self.wanted, self.error = version, None
            return
        now = time.monotonic()
        if version.id == self.wanted.id and now < self._retry_at:
            return
        if version.id != self.wanted.id:
            self._retry_delay = 1.0
        self.wanted = self.moving_to = version
        try:
            replica = await pool.acquire(version)
        except (YardError, OSError) as error:
            self.error = (
                error if isinstance(error, YardError) else InternalError(f"`{version.name}` cannot be loaded: {error}")
            )
            self.swaps["failed"] += 1
            self._retry_at = time.monotonic() + self._retry_delay
            self._retry_delay = min(self._retry_delay * 2, _LONGEST_RETRY)
            logger.warning("%s stays on %s: %s", self.reference, self.version.name, error)
            return
        finally:
            self.moving_to = None
        # One assignment in the event loop's only thread: every request sees the old replica or the new one.
        old, self.replica = self.replica, replica
        self.since, self.error, self._retry_at, self._retry_delay = datetime.now(UTC), None, 0.0, 1.0
        self.swaps["done"] += 1
        if old is not None:
            pool.release(old)
        logger.info("%s is served from %s", self.reference, version.name)


class Fleet:
    """All deployments of one server. `start`, then look up and generate; `close` drains and ends everything."""

    def __init__(
        self,
        yard: Yard,
        versions: Sequence[tuple[str, Version]],
        options: WorkerOptions,
        *,
        address: str,
        interval: float = 0.5,
    ) -> None:
        self.deployments = [Deployment(reference, version) for reference, version in versions]
        self.draining = False
        self._yard = yard
        self._interval = interval
        # One thread: whatever the catalog is made of, it sees one call at a time from here.
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="yard")
        self._pool = Pool(yard, options, self._threads)
        self._records = Records(yard, address)
        self._sizes: dict[tuple[str, int | None], int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load every deployment; raises the first reason why one cannot be served."""
        await asyncio.gather(*(deployment.start(self._pool) for deployment in self.deployments))
        self._tasks = [
            asyncio.create_task(self._follow(deployment)) for deployment in self.deployments if deployment.follows
        ]
        await self._record()
        self._tasks.append(asyncio.create_task(self._heartbeat()))

    async def close(self, drain: float) -> None:
        """Stop following, let the workers finish for at most `drain` seconds, end them, forget the deployments."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close(drain)
        try:
            await self._ask(self._records.drop)
        except YardError as error:
            logger.warning("the deployments could not be removed from the yard: %s", error)
        self._threads.shutdown(wait=False)

    def find(self, model: str) -> Deployment:
        """The deployment that `model` names: a reference as given, a repo that is loaded once, or a loaded version.

        Raises `NotFoundError` with near matches; nothing outside the loaded deployments is ever looked at.
        """
        for deployment in self.deployments:
            if deployment.reference == model:
                return deployment
        of_repo = [deployment for deployment in self.deployments if deployment.version.repo == model]
        if len({deployment.version.id for deployment in of_repo}) == 1:
            return of_repo[0]
        if of_repo:
            listed = ", ".join(f"`{deployment.reference}`" for deployment in of_repo)
            raise NotFoundError(
                f"`{model[:200]}` is loaded more than once", hint=f"say which: {listed}", code="model_not_found"
            )
        for deployment in self.deployments:
            if model in deployment.names or self._abbreviates(model, deployment):
                return deployment
        raise self._unknown(model)

    def _abbreviates(self, model: str, deployment: Deployment) -> bool:
        repo, at, digits = model.rpartition("@")
        if (at and repo != deployment.version.repo) or not re.fullmatch(r"[0-9a-f]{8,64}", digits):
            return False
        return str(deployment.version.id).startswith(digits)

    def _unknown(self, model: str) -> NotFoundError:
        references = [deployment.reference for deployment in self.deployments]
        repos = [deployment.version.repo for deployment in self.deployments]
        versions = [deployment.version.name for deployment in self.deployments]
        meant = near_match(model[:200], [*references, *repos, *versions])
        loaded = ", ".join(f"`{reference}`" for reference in references)
        return NotFoundError(
            f"no model `{model[:200]}` is served here",
            hint=f"did you mean `{meant}`?" if meant else f"loaded: {loaded}",
            code="model_not_found",
            field="model",
        )

    async def _ask(self, call: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _follow(self, deployment: Deployment) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                version = await self._ask(lambda: self._yard.resolve(deployment.reference))
                await deployment.move(version, self._pool)
            except YardError as error:
                # The alias was deleted or the catalog is busy: what is loaded goes on serving.
                deployment.error = error
            except Exception as error:
                logger.exception("following %s", deployment.reference)
                deployment.error = InternalError(f"following the reference failed: {type(error).__name__}")

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            await self._record()

    async def _record(self) -> None:
        """Tell the yard what is loaded, so that `yard ps` shows it and nothing collects it."""
        for deployment in self.deployments:
            version = deployment.version
            state = deployment.describe()
            info = {name: state[name] for name in ("ref", "state", "since", "pid")}
            # As measured when the version was taken over: what changes all the time is read from `/ready` (`status`).
            info["memory_bytes"] = self._sizes.setdefault((deployment.reference, state["pid"]), state["memory_bytes"])
            try:
                await self._ask(lambda d=deployment, v=version, i=info: self._records.tell(d.reference, v, i))  # type: ignore[misc]
            except YardError as error:
                logger.warning("%s could not be recorded: %s", deployment.reference, error)
