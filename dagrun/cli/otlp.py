"""trace export: a run as OpenTelemetry spans, into a file, on stdout or to a collector."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from dagrun.cli.console import Settings, emit, emit_json, say
from dagrun.cli.groups import command
from dagrun.cli.look import ARGUMENT
from dagrun.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagrun.core.state import RunState
    from dagrun.store.rundir import RunDir

PATH = "/v1/traces"  # where a collector takes traces, unless the address names a path
TIMEOUT_S = 10.0
OTLP = typer.Option("", "--otlp", metavar="TO", show_default=False, help="Spans: a FILE, a URL, or - for stdout.")
_SHOWN = 300  # characters of what a collector answered


@command(
    "export",
    "dagrun trace export --otlp spans.json\n"
    "dagrun trace export r7k2 --otlp http://localhost:4318\n"
    "dagrun trace export --otlp - --content | jq '.resourceSpans[].scopeSpans[]'",
)
def export(
    ctx: typer.Context,
    run: str = ARGUMENT,
    otlp: str = OTLP,
    content: bool = typer.Option(False, "--content", help="With what was said: prompts, answers, tool results."),
) -> None:
    """A run as OpenTelemetry spans (OTLP/JSON, GenAI semantic conventions).

    Messages stay out unless asked for. OTEL_EXPORTER_OTLP_HEADERS names headers for a URL.
    """
    from dagrun.store.history import load_state, run_status
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    if not otlp:
        raise UsageError("export to where?", hint="dagrun trace export --otlp spans.json, --otlp URL or --otlp -")
    check_target(otlp)
    found = find_run(".", run)
    state = load_state(found)
    body = spans_of(found, state, content=content, crashed=run_status(found, state) != state.status)
    put(body, otlp)
    if otlp == "-":
        return
    if settings.json:
        emit_json({"run_id": found.id, "to": otlp, "bytes": len(body)})
    elif not settings.quiet:
        say(f"run {found.id} exported to {otlp}")


def check_target(target: str) -> None:
    """Refuse what can't be exported to before there is anything to export. Raises UsageError."""
    if _is_url(target):
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(target)
            known = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            known = False
        if not known:
            raise UsageError(f"--otlp: {target} is no address", hint="such as --otlp http://localhost:4318")
    elif target and target != "-":
        folder = os.path.dirname(os.path.abspath(target))
        if os.path.isdir(target) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise UsageError(f"--otlp: can't write {target}", hint="name a file in a folder that is there, or a URL")


def _is_url(target: str) -> bool:
    return target.lower().startswith(("http://", "https://"))


def spans_of(run: RunDir, state: RunState, *, content: bool = False, crashed: bool = False) -> bytes:
    """A run as OTLP/JSON. Raises JournalError."""
    from json import dumps

    from dagrun.cli.show import reader_of, told_by_agents
    from dagrun.core.names import RunStatus
    from dagrun.view.conversation import conversations
    from dagrun.view.otel import otlp

    said = conversations(told_by_agents(run))
    status = RunStatus.CRASHED if crashed else None
    document = otlp(state, said, reader_of(run), content=content, status=status)
    return dumps(document, separators=(",", ":")).encode()


def export_ended(run: RunDir, state: RunState, target: str) -> str:
    """Export a run that has just ended; what went wrong, or an empty text: a run is not the worse for that."""
    try:
        put(spans_of(run, state), target)
    except EnvironmentFault as error:
        return error.message
    return ""


def put(body: bytes, target: str) -> None:
    """Bring spans where they shall go. Raises EnvironmentFault."""
    if _is_url(target):
        _send(body, target)
    elif target == "-":
        emit(body.decode())
    else:
        try:
            with open(target, "wb") as file:
                file.write(body + b"\n")
        except OSError as error:
            raise EnvironmentFault(f"can't write {target}: {error.strerror}", hint="name another file") from error


def _send(body: bytes, url: str) -> None:
    """POST spans to a collector. Raises EnvironmentFault for whatever it is that does not take them."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class Stay(HTTPRedirectHandler):
        """A POST that is sent elsewhere would arrive as a GET."""

        def redirect_request(self, *args: object) -> None:
            return None

    where = _address(url)
    headers = {"Content-Type": "application/json", **_headers(os.environ)}
    hint = "is a collector there that takes OTLP over HTTP (port 4318)? a file works always: --otlp spans.json"
    try:
        request = Request(where, data=body, headers=headers, method="POST")
        with build_opener(Stay).open(request, timeout=TIMEOUT_S) as answer:
            _check_taken(answer.read(1 << 16), where)
    except HTTPError as error:
        said = error.read(_SHOWN).decode("utf-8", "replace").strip()
        text = f"{where} answered {error.code}{f': {said}' if said else ''}"
        raise EnvironmentFault(text, hint=hint) from None
    except (OSError, HTTPException, ValueError) as error:
        raise EnvironmentFault(f"can't send to {where}: {_reason(error)}", hint=hint) from None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason)


def _check_taken(answer: bytes, where: str) -> None:
    """A collector may say 200 and still drop spans. Raises EnvironmentFault."""
    from json import loads

    try:
        said = loads(answer or b"{}")
    except ValueError:
        return  # a plain 200 is good enough
    partial = said.get("partialSuccess") if isinstance(said, dict) else None
    if isinstance(partial, dict) and int(partial.get("rejectedSpans") or 0):
        text = f"{where} dropped {partial['rejectedSpans']} spans: {str(partial.get('errorMessage', ''))[:_SHOWN]}"
        raise EnvironmentFault(text, hint="keep them in a file: --otlp spans.json")


def _address(url: str) -> str:
    """The address that traces go to: one without a path is that of the collector."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts._replace(path=PATH).geturl() if parts.path in ("", "/") else url


def _headers(env: Mapping[str, str]) -> dict[str, str]:
    """Headers of OTEL_EXPORTER_OTLP_HEADERS: `name=value,name=value`, values percent-encoded."""
    from urllib.parse import unquote

    pairs = (pair.partition("=") for pair in env.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(","))
    return {name.strip(): unquote(value.strip()) for name, equals, value in pairs if equals and name.strip()}
