"""Answers that come in one piece though a stream was asked for, as the stream that they should have been.

Local servers and proxies that know no streams ignore the wish, and clients take their answer for a stream
that ended without a word. Only a chat completion in OpenAI's JSON is understood, and an error in it; all
else is passed on byte by byte, for whoever reads it to judge.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 32 << 20
_PATH = "/chat/completions"
_MAY_BE_WHOLE = frozenset({"", "application/json", "text/json", "text/plain"})
_BEFORE = b" \t\r\n\xef\xbb\xbf"  # white space and a mark of the byte order: neither says what follows
_CHOICE: dict[str, Any] = {"index": 0, "delta": {}}


def in_pieces(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    """The response itself, or one whose body becomes a stream where it turns out to be a whole answer."""
    import httpx

    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code != 200 or kind not in _MAY_BE_WHOLE or not _wants_stream(request):
        return response
    # the body is handed on decoded, and longer or shorter than it came
    kept = [(k, v) for k, v in response.headers.items() if k not in ("content-encoding", "content-length")]

    # without litellm beside it the type checker knows no httpx
    class Pieces(httpx.AsyncByteStream):  # type: ignore[misc, unused-ignore]
        def __aiter__(self) -> AsyncIterator[bytes]:
            return _pieces(response)

        async def aclose(self) -> None:
            await response.aclose()

    return httpx.Response(200, headers=kept, stream=Pieces(), request=request, extensions=response.extensions)


def _wants_stream(request: httpx.Request) -> bool:
    if request.method != "POST" or not request.url.path.endswith(_PATH):
        return False
    try:
        asked = json.loads(request.content)
    except (ValueError, RuntimeError):  # no JSON, or not kept: somebody else's request
        return False
    return isinstance(asked, dict) and asked.get("stream") is True


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes, but for one that begins as an object does: that one whole, as events."""
    import httpx

    held = bytearray()
    is_whole: bool | None = None
    async for data in response.aiter_bytes():
        if is_whole is None and (data := data.lstrip(_BEFORE)):
            is_whole = data.startswith(b"{")
        if is_whole is False:
            yield data
            continue
        held += data
        if len(held) > MAX_BYTES:
            raise httpx.ReadError(f"an answer in one piece has more than {MAX_BYTES >> 20} MiB", request=None)
    if is_whole:
        yield as_events(bytes(held))


def as_events(body: bytes) -> bytes:
    """The events that a stream would have had; the body itself where it is no chat completion."""
    try:
        answer = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return body
    if not isinstance(answer, dict):
        return body
    if answer.get("error"):
        return _event({"error": answer["error"]})
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return body
    message = choices[0].get("message")
    if not isinstance(message, dict):
        return body
    head = {name: answer[name] for name in ("id", "created", "model") if name in answer}
    head["object"] = "chat.completion.chunk"
    delta = {name: value for name, value in message.items() if value is not None}
    calls = delta.pop("tool_calls", None)
    if isinstance(calls, list) and calls:
        delta["tool_calls"] = [{"index": k, **call} for k, call in enumerate(calls) if isinstance(call, dict)]
    reason = choices[0].get("finish_reason") or ("tool_calls" if "tool_calls" in delta else "stop")
    made = _event({**head, "choices": [{**_CHOICE, "delta": delta}]})
    made += _event({**head, "choices": [{**_CHOICE, "finish_reason": reason}]})
    if answer.get("usage") is not None:
        made += _event({**head, "choices": [], "usage": answer["usage"]})
    return made + b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"
