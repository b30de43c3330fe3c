"""An engine on flow.yaml that is cancelled by another hand at the worst moment: after it has read and written
the journal, before it waits. The hand is its own observer, so the moment is exact."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dagrun.core.event import AttemptFinished, Event
from dagrun.core.state import RunState
from dagrun.engine.observer import Silent
from dagrun.engine.recovery import request_cancel
from dagrun.engine.session import Options, execute
from dagrun.flowfile.load import read_workflow
from dagrun.sandbox.watchdog import EngineSide, run_under_watchdog
from dagrun.store.rundir import find_run


class Hand(Silent):
    def recorded(self, events: Sequence[Event], state: RunState) -> None:
        if any(isinstance(e, AttemptFinished) for e in events):
            request_cancel(find_run(".", None), "the hand")


def main(side: EngineSide) -> int:
    return execute(read_workflow("flow.yaml").workflow, Options(project=os.getcwd()), Hand(), side).exit_code


if __name__ == "__main__":
    sys.exit(run_under_watchdog(main))
