"""What a model call does on the wire: one request and no more, and what came back, whoever sits on top of it.

Clients of vendors retry on their own, follow redirects (21 requests were counted for one call) and give
errors other names. All of them send through one of two transports; both are guarded here, so that a call
is one POST, and an error is told by the status and the headers that really came. An answer in one piece is
made a stream here (broker_whole.py): no client finds it otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from dagrun.agent.broker_whole import in_pieces

if TYPE_CHECKING:
    import httpx

    Send: TypeAlias = Callable[[httpx.AsyncBaseTransport, httpx.Request], Awaitable[httpx.Response]]

_METHOD = "handle_async_request"
# of both transports: nothing but these says that no server can have got the request
_NEVER_CONNECTED = frozenset(
    "ConnectError ConnectTimeout PoolTimeout ProxyError ConnectionTimeoutError ClientProxyConnectionError".split()
)
_CONNECTING = "ClientConnector"  # …Error, …DNSError, …SSLError, …CertificateError
_SECURE = ("SSLError", "CertificateError")


@dataclass(slots=True)
class Wire:
    """What one call did. `status` None: no answer began. `reached` False: no server can have got the request."""

    sent: list[str] = field(default_factory=list)
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    redirected: bool = False
    reached: bool = False
    insecure: bool = False  # no secure connection came about
    error: Exception | None = None

    @property
    def content_type(self) -> str:
        """The kind of what came back, without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def admit(self, request: httpx.Request) -> None:
        """Let a request pass. Raises the error of the first one when it would be sent again."""
        import httpx

        where = f"{request.method} {request.url.copy_with(query=None)}"
        if self.redirected or where in self.sent:
            raise self.error or httpx.RequestError("a call is one request, and it was sent already", request=request)
        if request.method == "POST":  # others fetch credentials from the machine's own service
            self.sent.append(where)
            self.reached = True

    def answered(self, response: httpx.Response) -> None:
        """An answer began."""
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self.redirected = 300 <= response.status_code < 400

    def failed(self, error: Exception) -> None:
        """No answer came."""
        self.error = error
        below = type(error.__cause__)
        # aiohttp's transport calls a refused connection and one that broke amid the request the same
        name = (below if below.__module__.startswith("aiohttp") else type(error)).__name__
        self.insecure = name.endswith(_SECURE) or "[SSL" in str(error)
        if self.insecure or name in _NEVER_CONNECTED or name.startswith(_CONNECTING):
            self.reached = False


CURRENT: ContextVar[Wire | None] = ContextVar("wire", default=None)


def guard(*transports: type[httpx.AsyncBaseTransport]) -> None:
    """From now on let calls send by these only what `Wire.admit` lets pass; once per transport."""
    for transport in transports:
        setattr(transport, _METHOD, _guarded(getattr(transport, _METHOD)))


def _guarded(send: Send) -> Send:
    from httpx import HTTPError

    async def handle_async_request(self: httpx.AsyncBaseTransport, request: httpx.Request) -> httpx.Response:
        wire = CURRENT.get()
        if wire is None:
            return await send(self, request)
        wire.admit(request)
        try:
            response = await send(self, request)
        except HTTPError as error:
            wire.failed(error)
            raise
        wire.answered(response)
        return in_pieces(request, response)

    return handle_async_request
