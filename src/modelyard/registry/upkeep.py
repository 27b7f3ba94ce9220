"""The part of `Yard` that looks after what is stored: compaction, collection, checks, what takes how much.

Each method is a line here and a function in the module of its noun. Knows no versions' contents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelyard.registry.collection import Collection
    from modelyard.registry.context import Context
    from modelyard.registry.findings import CheckReport
    from modelyard.registry.model import Version
    from modelyard.registry.savings import Compaction
    from modelyard.registry.usage import Usage

__all__ = ["Upkeep"]


class Upkeep:
    """What `Yard` inherits for its upkeep; not used alone."""

    _context: Context

    def usage(self, reference: str | None = None) -> Usage:
        """What takes how much: by repo, or with `[datasets/]ns/name[@REV]` by version of that repo.

        Raises:
            NotFoundError, RefError: As `resolve`.
        """
        from modelyard.registry.usage import usage

        return usage(self._context, reference)

    def compact(
        self,
        references: Sequence[str | Version] = (),
        *,
        idle_days: float = 7,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
        least_rate: float = 200e6,
    ) -> Compaction:
        """Keep what is not in use in fewer bytes: computed from its base, as a delta, or packed; `collect` then frees the rest.

        Args:
            references: Only these versions; by default every one that is cold.
            idle_days: How long nobody must have used a version.
            dry_run: Encode everything, change nothing: the figures are exact but for the packs' indexes.
            progress: Called with (bytes done, bytes in all).
            least_rate: What this machine must compute, in bytes a second on one thread, for a segment to be kept as
                the result of an operation; 0 accepts any.

        Raises:
            ConflictError: A version that is named is in use; the message says by what.
            NotFoundError, RefError: As `resolve`.
            NoSpaceError: The disk is full; what was there before still is.
        """
        from modelyard.registry.compaction import compact

        return compact(
            self._context, references, idle_days=idle_days, dry_run=dry_run, progress=progress, least_rate=least_rate
        )

    def collect(
        self,
        *,
        now: bool = False,
        dry_run: bool = False,
        grace_days: float = 14,
        force: bool = False,
        wait_seconds: float | None = None,
        progress: Callable[[str], object] | None = None,
    ) -> Collection:
        """Remove what nothing needs: objects are marked, and go in a later pass when nobody who began before is at work.

        Args:
            now: Do not wait for the grace period but, here and now, for everybody who is at work already.
            dry_run: Change nothing; say what would go.
            grace_days: How long an object stays marked before it goes.
            force: Remove more than half of the yard's objects, too.
            wait_seconds: With `now`, wait no longer than this; what is left then goes another time.
            progress: Told whom it waits for.

        Raises:
            ConflictError: More than half of the objects (of more than 20) would go (`too_much`), or the catalog knows less
                than the journal, as one from an older backup does (`catalog_behind`); nothing was removed.
            YardError: The store could not be listed; nothing was removed.
        """
        from modelyard.registry.collection import collect

        return collect(
            self._context,
            now=now,
            dry_run=dry_run,
            grace_days=grace_days,
            force=force,
            wait_seconds=wait_seconds,
            progress=progress,
        )

    def check(
        self,
        *,
        read_data: bool = False,
        subset: float | None = None,
        seed: int | None = None,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> CheckReport:
        """Look for every fault: what is missing, of the wrong size or kind, not what its manifest, index or journal says.

        Args:
            read_data: Hash every stored byte too, and put together what is not kept whole.
            subset: Of that, only so many percent, chosen by digest: another part every day.
            seed: Which part; by default the number of the day.
            repair: Make anew what can be made anew from elsewhere, and move other damaged objects to `quarantine/`.
            progress: Called with (objects read, objects in all).

        Raises:
            InputError: `subset` is no share.
        """
        from modelyard.registry.check import check

        return check(self._context, read_data=read_data, subset=subset, seed=seed, repair=repair, progress=progress)
