"""The HTTP/1.1 protocol with a clock on request heads.

uvicorn waits forever for a connection that sends nothing, or half a head; here it is closed after
`Limits.head_seconds`, however slowly bytes drip in. A client that leaves its answer unread is cut off too. Bodies have
their own clock in `guard`. It knows no routes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from modelyard.serving.guard import Limits

if TYPE_CHECKING:
    import asyncio


__all__ = ["protocol_class"]


class ClockedProtocol(H11Protocol):
    """uvicorn's protocol with timers for heads that do not arrive and answers that are not read."""

    limits = Limits()
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the clock of the first head; one connection too many is closed."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._disarm()
        self._unset_send_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """End a connection whose request body nobody will read."""
        super().on_response_complete()
        # An answer that did not need the rest of the body ends the connection: nothing else would end a drip.
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()

    def pause_writing(self) -> None:
        """Begin the clock of a reader that does not keep up."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.limits.send_seconds, self._expire)

    def resume_writing(self) -> None:
        """Stop it."""
        self._unset_send_timer()
        super().resume_writing()

    def _unset_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def data_received(self, data: bytes) -> None:
        """Begin the clock of a next head."""
        super().data_received(data)
        # After an answer, a connection idles on uvicorn's keep-alive timer, which the first byte of a next head
        # stops: from there on it is ours.
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._arm()

    def handle_events(self) -> None:
        """Stop the clock of a head that is complete."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._disarm()

    def _arm(self) -> None:
        # Once per head: a byte now and then must not postpone the end.
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self._expire)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _expire(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.abort()


def protocol_class(limits: Limits) -> type[asyncio.Protocol]:
    """A protocol for `uvicorn.Config(http=...)` that keeps `limits`."""
    return type("LimitedProtocol", (ClockedProtocol,), {"limits": limits})
