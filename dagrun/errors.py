"""Every way in which dagrun says no.

    DagrunError                     exit 70   (the base; never raised itself)
    ├── UsageError                  exit 2    the command line is wrong
    ├── InputError                  exit 3    a file of the user is wrong: carries *all* problems
    ├── BudgetError                 exit 5    there is no money left
    ├── ConflictError               exit 6    the plan or the target moved
    ├── RunLockedError              exit 7    another engine has this run
    ├── EnvironmentFault            exit 8    this machine can't: disk, rights, sandbox, Docker
    │   └── JournalError            exit 8    a journal is torn in the middle, newer, or gone
    ├── NotFoundError               exit 9    no such run or node
    └── BugError                    exit 70   an invariant of dagrun is broken: please report

An error carries data (what, where, why, next command); `render` is the one place that turns it
into text. A node that fails raises nothing: its failure is an event.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BudgetError",
    "BugError",
    "ConflictError",
    "DagrunError",
    "EnvironmentFault",
    "InputError",
    "JournalError",
    "NotFoundError",
    "Problem",
    "RunLockedError",
    "UsageError",
    "render",
    "render_problem",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in one place of a file.

    `line` and `column` count from 1, `column` in characters; 0 means "the file as a whole".
    `excerpt` holds the lines around the place as (line number, text) and always contains `line`
    when it isn't empty; its texts begin `shift` characters into their lines. `hint` says what to
    write instead.
    """

    code: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    length: int = 1
    hint: str = ""
    excerpt: tuple[tuple[int, str], ...] = ()
    severity: str = "error"  # error | warning
    shift: int = 0

    def to_json(self) -> dict[str, object]:
        """This problem as `validate --format json` prints it."""
        return {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "length": self.length,
            "hint": self.hint,
        }


class DagrunError(Exception):
    """Something that the caller can act on: `message`, then `hint`, the next command to type."""

    exit_code = 70
    code = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, object]:
        """This error as `--json` prints it."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "hint": self.hint,
        }


class UsageError(DagrunError):
    """The command line can't be carried out as written."""

    exit_code = 2
    code = "usage"


class InputError(DagrunError):
    """A file or a parameter of the user is wrong: all its problems, in the order of the file."""

    exit_code = 3
    code = "invalid"

    def __init__(self, problems: tuple[Problem, ...], *, hint: str = "") -> None:
        errors = sum(p.severity == "error" for p in problems)
        super().__init__(f"{errors} error{'s' if errors != 1 else ''}", hint=hint)
        self.problems = problems

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "problems": [p.to_json() for p in self.problems]}


class ConflictError(DagrunError):
    """Somebody else moved what this command was built on."""

    exit_code = 6
    code = "conflict"


class BudgetError(DagrunError):
    """There is no money left to do it."""

    exit_code = 5
    code = "budget"


class RunLockedError(DagrunError):
    """Another engine holds the lock of this run."""

    exit_code = 7
    code = "locked"


class EnvironmentFault(DagrunError):
    """This machine can't do what was asked: disk, rights, descriptors, a missing program."""

    exit_code = 8
    code = "environment"


class JournalError(EnvironmentFault):
    """The journal of a run can't be read or written: corrupt, newer, replaced or on a full disk."""

    code = "journal"


class NotFoundError(DagrunError):
    """There is no such run or node."""

    exit_code = 9
    code = "not-found"


class BugError(DagrunError):
    """An invariant of dagrun itself is broken."""

    code = "bug"


def render(error: DagrunError) -> str:
    """The text of an error for a person: no colour, no trailing newline, control characters shown."""
    if isinstance(error, InputError):
        text = "\n".join(render_problem(p) for p in error.problems)
        warnings = sum(p.severity == "warning" for p in error.problems)
        counts = error.message
        if warnings:
            counts += f", {warnings} warning{'s' if warnings != 1 else ''}"
        text += f"\n{counts}"
    else:
        text = f"error[{error.code}]: {visible(error.message)}"
    if error.hint:
        text += f"\n  help: {visible(error.hint)}"
    return text


def render_problem(problem: Problem) -> str:
    """A problem as a code frame: what, where, the line with the place underlined, what to write instead."""
    head = f"{problem.severity}[{problem.code}]: {visible(problem.message)}"
    if not problem.file:
        return head + (f"\n  help: {visible(problem.hint)}" if problem.hint else "")
    where = visible(problem.file)
    if problem.line:
        where += f":{problem.line}:{problem.column}"
    out = [head, f"  --> {where}"]
    width = max((len(str(n)) for n, _ in problem.excerpt), default=1)
    for number, line in problem.excerpt:
        out.append(f" {number:>{width}} | {visible(line)}".rstrip())
        if number == problem.line:
            begin = max(0, problem.column - 1 - problem.shift)
            pad, marked = _cells(line[:begin]), _cells(line[begin : begin + problem.length])
            out.append(f" {' ' * width} | {' ' * pad}{'^' * max(1, marked)}")
    if problem.hint:
        out.append(f" {' ' * width} = help: {visible(problem.hint)}")
    return "\n".join(out)


def visible(text: str) -> str:
    """`text` with every control character but newline made visible, so that no file moves a cursor."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else " " if c == "\t" else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _cells(text: str) -> int:
    """How many cells of a terminal `text` takes when it is shown."""
    shown = visible(text)
    if shown.isascii():
        return len(shown)
    from unicodedata import combining, east_asian_width

    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in shown)
