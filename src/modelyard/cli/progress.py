"""Showing a run's events: a line a step on stderr, with a moving line while a step works on a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from modelyard.cli.output import clean
from modelyard.recipes import Event, Note, StepFailed, StepFinished, StepProgress, StepStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

__all__ = ["RunDisplay", "byte_bar", "count_bar"]


class RunDisplay:
    """Renders events as they come; nothing when `quiet`. Use it as a context manager and pass `show` as `progress`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False, style="dim"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        """Render one event."""
        if isinstance(event, StepStarted):
            self._clear()
            self._task = self._bar.add_task(f"{event.step:<13}", total=1.0, detail=clean(event.reason))
        elif isinstance(event, StepProgress) and self._task is not None:
            self._bar.update(self._task, completed=event.fraction, detail=clean(event.detail))
        elif isinstance(event, StepFinished):
            self._clear()
            mark = "[dim]=[/dim]" if event.cached else "[green]ok[/green]"
            spent = "" if event.cached else f"  [dim]{event.seconds:.1f} s[/dim]"
            self._line(f"{mark:<2}", event.step, event.summary, spent)
        elif isinstance(event, StepFailed):
            self._clear()
            self._line("[red]failed[/red]", event.step, event.message, f"  [dim]{event.seconds:.1f} s[/dim]")
        elif isinstance(event, Note):
            self._line("[yellow]note[/yellow]", event.step, event.message, "")

    def _clear(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _line(self, mark: str, step: str, text: str, tail: str) -> None:
        from rich.markup import escape

        self._console.print(f"{mark} {step:<13} {escape(clean(text))}{tail}", soft_wrap=True)


@contextmanager
def count_bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A moving line for a function that reports how many are done, of how many."""
    with _bar(what, MofNCompleteColumn(), quiet) as update:
        yield update


@contextmanager
def byte_bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """As `count_bar`, for bytes."""
    with _bar(what, DownloadColumn(binary_units=True), quiet) as update:
        yield update


@contextmanager
def _bar(what: str, column: ProgressColumn, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True, highlight=False, quiet=quiet)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        column,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
