"""WebSockets behind the ASGI driver: the handshake is a GET that is limited and recorded, the messages are counted.

A connection has one record, made when it ends: status 101, or that of the answer that refused it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from usagekeeper.errors import QuotaExceeded
from usagekeeper.exchange import AsgiRequest, asgi_place
from usagekeeper.policies import SOCKET
from usagekeeper.ticket import Ticket
from usagekeeper.usage import current

if TYPE_CHECKING:
    from usagekeeper.asgi import UsageMiddleware
    from usagekeeper.exchange import Refusal

Message = MutableMapping[str, Any]

_LOG: Final = logging.getLogger("usagekeeper")
_SWITCHING: Final = 101
_FORBIDDEN: Final = 403
_TRY_AGAIN_LATER: Final = 1013
"""A close code of the registry that RFC 6455, 7.4.2, sets up."""
_ORDERLY: Final = frozenset((1000, 1001, 1005))
"""Codes of a connection that came to its end as it should."""


async def serve(driver: UsageMiddleware, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Serve one connection: refuse its handshake, or pass it on and record it."""
    path, root = scope["path"], scope.get("root_path", "")
    if root:
        path, root = asgi_place(scope)
    plan = driver.find(SOCKET, path, root)
    if plan is None or driver.mark in scope:
        await driver.app(scope, receive, send)
        return
    scope[driver.mark] = True
    pairs = scope["headers"]
    headers = dict(pairs)
    request = AsgiRequest("GET", path, scope, headers, len(headers) != len(pairs))
    socket = _Socket(plan, request, driver.clock() // 1000, driver.timer(), driver=driver, pull=receive, forward=send)
    token = current.set(socket)
    try:
        if (later := driver.admit(socket)) is not None:
            await later
        if socket.refusal is None:
            await driver.app(scope, socket.receive, socket.send)
        else:
            await socket.refuse(socket.refusal)
    except QuotaExceeded as error:
        await socket.refuse(driver.engine.exceeded(socket, error.decision))
    except BaseException as error:
        socket.failed(error)
        raise
    finally:
        if not socket.closed:
            socket.close(aborted=True)
        try:  # noqa: SIM105  as for requests
            current.reset(token)
        except ValueError:
            pass


class _Socket(Ticket):
    """A connection that is being watched, from its handshake to its end."""

    driver: UsageMiddleware = None  # type: ignore[assignment]
    pull: Callable[[], Awaitable[Message]] = None  # type: ignore[assignment]
    forward: Callable[[Message], Awaitable[None]] = None  # type: ignore[assignment]

    async def receive(self) -> Message:
        """The `receive` given to the application."""
        message = await self.pull()
        kind = message["type"]
        if kind == "websocket.receive":
            self.bytes_in += _size(message)
        elif kind == "websocket.disconnect" and not self.closed:
            self.status = self.status or 499
            self.close(aborted=message.get("code", 1005) not in _ORDERLY)
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """The `send` given to the application."""
        kind = message["type"]
        if kind == "websocket.send":
            self.bytes_out += _size(message)
        elif kind == "websocket.accept":
            message = self._accept(message)
        elif kind == "websocket.close" and not self.closed:
            self.status = self.status or _FORBIDDEN  # what servers answer to a handshake that is closed
            self.close()
        elif kind == "websocket.http.response.start":
            self._begin(message["status"])
        elif kind == "websocket.http.response.body":
            self.bytes_out += len(message.get("body", b""))
            if not (message.get("more_body", False) or self.closed):
                self.close()
        return self.forward(message)

    def _begin(self, status: int) -> None:
        self.status = status
        self.started = self.driver.timer()

    def _accept(self, message: Message) -> Message:
        self._begin(_SWITCHING)
        form, spends = self.form, self.spends
        if form is None or spends is None:
            return message
        return {**message, "headers": [*message.get("headers", ()), *form.raw(spends.rows, spends.now, charged=True)]}

    async def refuse(self, refusal: Refusal) -> None:
        """Answer instead of the application: as HTTP where the server can, else by closing the handshake."""
        if self.status == _SWITCHING:
            await self.send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": "quota exceeded"})
            return
        if "websocket.http.response" not in self.request.scope.get("extensions", ()):  # type: ignore[attr-defined]
            self._begin(refusal.status)
            await self.send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
            return
        start = {"type": "websocket.http.response.start", "status": refusal.status, "headers": refusal.headers}
        await self.send(start)
        await self.send({"type": "websocket.http.response.body", "body": refusal.body})

    def failed(self, error: BaseException) -> None:
        """The application raised, or was cancelled."""
        if not self.closed:
            self.raised(error)
            self.status = self.status or (500 if isinstance(error, Exception) else 499)

    def close(self, *, aborted: bool = False) -> None:
        """Make the record. Nothing that goes wrong here reaches the client."""
        self.closed = True
        self.status = self.status or 499
        driver = self.driver
        try:
            driver.record(driver.close_ticket(self, driver.timer(), aborted))
        except Exception:  # a callable of the user such as charge_on
            _LOG.exception("a usage record could not be made")


def _size(message: Message) -> int:
    data = message.get("bytes")
    return len(data) if data is not None else len((message.get("text") or "").encode("utf-8", "replace"))
