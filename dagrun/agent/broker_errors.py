"""What an error of a model call means: by what came over the wire first, by the library's own names second.

Pure: facts in, a CallFailed out. Nothing sent is never transient (a missing key has many disguises), a
connection that was refused is not billed, what broke after an answer began is presumed billed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from dagrun.agent.broker_wire import Wire
from dagrun.agent.messages import CallFailed, ErrorKind
from dagrun.core.mask import Masker

MAX_MESSAGE = 600  # characters
STATUS: Mapping[int, ErrorKind] = {
    401: "auth",
    403: "auth",
    408: "overloaded",  # the request did not arrive in time: not the answer
    409: "overloaded",
    413: "context_too_long",
    425: "overloaded",
    429: "rate_limit",
    504: "timeout",  # a gateway gave up waiting: the model behind it may have answered, and billed
    524: "timeout",
}
# a connection that ends without a byte of an answer: mostly an idle one, but nobody knows that it was not billed
UNANSWERED: ErrorKind = "cut"
_NAMED: Mapping[str, ErrorKind] = {
    "ContextWindowExceededError": "context_too_long",
    "RateLimitError": "rate_limit",
    "AuthenticationError": "auth",
    "PermissionDeniedError": "auth",
    "BadRequestError": "bad_request",
    "NotFoundError": "bad_request",
    "UnprocessableEntityError": "bad_request",
}
_BROKEN = frozenset("ReadError WriteError RemoteProtocolError CloseError ClientPayloadError".split())
_TOO_LONG = re.compile(
    r"context.{0,5}(?:length|window)|maximum context|prompt is too long|too many (?:input )?tokens"
    r"|input is too long|exceeds? the (?:maximum|limit).{0,40}tokens|string too long",
    re.IGNORECASE,
)
_NO_MONEY = re.compile(r"insufficient_quota|credit balance is too low|billing_hard_limit", re.IGNORECASE)
_NO_KEY = re.compile(r"api[_ -]?key|credentials", re.IGNORECASE)
_PREFIX = re.compile(r"^(?:litellm\.)?(?:\w+(?:Error|Exception)|Timeout(?: Error)?)(?:: | - )")
_NO_VENDOR = re.compile(r"LLM Provider NOT provided.*?You passed model=(\S+)", re.DOTALL)
_NOT_SECURE = re.compile(r"\[SSL[^]]*\]([^(]+)")
_EMPTY = re.compile(r"(?:Connection error|Request timed out)\.?|Response payload is not completed.*", re.DOTALL)
_SUFFIX = re.compile(r"\.? Handle with `litellm\.\w+`\.?|Original exception: .*", re.DOTALL)


def failure(wire: Wire, error: BaseException, partial: str, mask: Masker, *, began: bool = False) -> CallFailed:
    """The CallFailed of a call that ended with `error`; `partial` is the text that had come.

    `began`: a part of an answer came, with text or without (a tool call, a thought, counts): that is billed.
    """
    told = _told(error)
    kind = "cut" if partial or began else _kind(wire, error, told)
    text = ": ".join(part for part in (_where(wire, kind), _why(wire, told)) if part)
    return CallFailed(
        kind=kind,
        message=clean(text, mask),
        status=wire.status if wire.status is None or wire.status >= 300 else None,
        retry_after_s=retry_after(wire.headers, datetime.now(UTC)) if wire.status not in (None, 200) else None,
        partial=mask.text(partial),
    )


def without_end(wire: Wire, partial: str, mask: Masker) -> CallFailed:
    """The CallFailed of an answer that ended without saying so."""
    if not partial and "html" in wire.content_type:
        text = "the endpoint answered with a web page: is its address right (most end in /v1)?"
        return CallFailed(kind="bad_request", message=text)
    text = "the answer ended before it was complete"
    if not partial and wire.content_type == "application/json":
        text = "the endpoint answered in one piece, and with no chat completion"
    return CallFailed(kind="cut", message=text, partial=mask.text(partial))


def clean(text: str, mask: Masker) -> str:
    """A text for people: no keys, one line, not long."""
    text = " ".join(mask.text(text).split())
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


def _kind(wire: Wire, error: BaseException, told: str) -> ErrorKind:
    below = list(_below(error))
    names = {kind.__name__ for one in below for kind in type(one).__mro__}
    if not wire.sent:
        if "ContextWindowExceededError" in names:
            return "context_too_long"
        return "auth" if "AuthenticationError" in names or _NO_KEY.search(told) else "bad_request"
    if wire.redirected or wire.insecure:
        return "bad_request"
    if wire.status is None:
        if not wire.reached:
            return "overloaded"  # no connection: certainly not billed
        return "timeout" if any("Timeout" in name for name in names) else UNANSWERED
    if wire.status < 300:
        return _in_stream(names, told)
    if any(_NO_MONEY.search(str(one)) for one in below):
        return "bad_request"  # the status is that of a rate limit, but no waiting helps
    if wire.status in STATUS:
        return STATUS[wire.status]
    if wire.status >= 500:
        return "overloaded"
    return "context_too_long" if "ContextWindowExceededError" in names or _TOO_LONG.search(told) else "bad_request"


def _in_stream(names: set[str], told: str) -> ErrorKind:
    """The kind of an error after the server had said that all is well, before any text."""
    if names & _BROKEN:
        return "cut"
    if any("Timeout" in name for name in names):
        return "timeout"
    if _TOO_LONG.search(told):
        return "context_too_long"
    return next((kind for name, kind in _NAMED.items() if name in names), "overloaded")


def _below(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was made of."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__, getattr(one, "original_exception", None)]


def _where(wire: Wire, kind: ErrorKind) -> str:
    if not wire.sent:
        return "the call was not sent"
    if wire.redirected:
        return f"the endpoint sends calls elsewhere (status {wire.status}): give its final address"
    host = urlsplit(wire.sent[-1].partition(" ")[2]).netloc.rpartition("@")[2]
    if wire.insecure:
        return f"no secure connection to {host}"
    if wire.status is None:
        return f"no connection to {host}" if not wire.reached else "the connection ended without an answer"
    return f"status {wire.status}" if wire.status >= 300 else "the answer broke off" if kind == "cut" else "refused"


def _why(wire: Wire, told: str) -> str:
    """What is to be known beside where it failed: below a connection that failed is why, above are empty words."""
    if wire.redirected:
        return wire.headers.get("location", "").partition("?")[0]
    if wire.error is not None and (wire.insecure or not wire.reached):
        secure = _NOT_SECURE.search(str(wire.error))
        if secure is not None:
            return secure[1].strip()
        for one in _below(wire.error):
            if isinstance(one, OSError) and one.errno:
                return (os.strerror(one.errno) if one.errno > 0 else one.strerror or "").lower()
    return "" if _EMPTY.fullmatch(told) else told


def _told(error: BaseException) -> str:
    """What the vendor said, without the library's own words around it."""
    said = getattr(error, "original_exception", None) or error
    text = _SUFFIX.sub("", str(getattr(said, "message", "") or said)).strip()
    while (shorter := _PREFIX.sub("", text)) != text:
        text = shorter
    stranger = _NO_VENDOR.match(text)
    return f"there is no vendor `{stranger[1].partition('/')[0]}`" if stranger else text


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds that the provider asks to wait; None when it does not say, or not in a way that can be read."""
    for name, unit in (("retry-after-ms", 0.001), ("x-ms-retry-after-ms", 0.001), ("retry-after", 1.0)):
        said = headers.get(name, "").strip()
        if not said:
            continue
        try:
            seconds = float(said) * unit
        except ValueError:
            seconds = _until(said, now)
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _until(date: str, now: datetime) -> float:
    try:
        when = parsedate_to_datetime(date)
    except ValueError:
        return math.nan
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now.timestamp()
