"""audit: where every byte of a run's model requests comes from."""

from __future__ import annotations

import os
import sys

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for
from dagrun.cli.groups import command


@command("audit", "dagrun audit\ndagrun audit r7k2\ndagrun audit run.jsonl --json")
def audit(
    ctx: typer.Context,
    run: str = typer.Argument("last", metavar="[RUN]", show_default=False, help="A run, or a recorded one."),
) -> None:
    """Make every recorded model request again, and explain each of its bytes. Exit 1 if one can't be.

    They are made from the plan, the journaled outputs and results, and the files of skills by their
    digest: never from the requests that were kept.
    """
    from dagrun.engine.auditing import audit as explain
    from dagrun.engine.recordfile import open_record
    from dagrun.view.audit import audit_text

    settings: Settings = ctx.obj
    record = open_record(run, ".")
    findings = explain(record, os.environ.get("HOME", ""))
    ok = all(finding.ok for finding in findings)
    if settings.json:
        nodes = [
            {
                "node": f.node,
                "attempt": f.attempt,
                "calls": f.calls,
                "explained": f.explained,
                "sent_bytes": f.sent,
                "call": f.call,
                "problem": f.problem,
                "notes": f.notes,
            }
            for f in findings
        ]
        emit_json({"version": 1, "run_id": record.created.run_id, "ok": ok, "attempts": nodes})
    else:
        emit(audit_text(record.created.run_id, findings, look_for(settings, sys.stdout)))
    if not ok:
        raise typer.Exit(1)
