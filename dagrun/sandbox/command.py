"""From the `run` of a node to argv: a tuple is argv, a string is a shell's unless it needs none.

Knows nothing of processes. Invariant: leaving out the shell is never visible to the command. The
text must consist of words without any character that a shell reads, and its first word must be a
program in every shell: no builtin, keyword, alias or assignment.
"""

from __future__ import annotations

import re
from functools import lru_cache

# A letter too few here costs one `sh`; a letter too many changes what a command means. `=` is an
# assignment only before the command word and `%` a job only to builtins, so later words may have them.
_PLAIN = re.compile(r"[ \t]*[A-Za-z0-9_./][A-Za-z0-9_./+:@,-]*(?:[ \t]+[A-Za-z0-9_./+:@,=%-]+)*[ \t\n]*")

# Builtins, keywords and usual aliases of dash, bash and busybox. `true` and `false` are missing on
# purpose: as programs they do the same.
_SHELL_WORDS = frozenset(
    """
    . : alias bg bind break builtin caller case cd chdir command compgen complete compopt continue coproc
    declare dirs disown do done echo elif else enable esac eval exec exit export fc fg fi for function
    getopts hash help history if in jobs kill let local logout mapfile popd printf pushd pwd read
    readarray readonly return select set shift shopt source suspend test then time times trap type
    typeset ulimit umask unalias unset until wait while
    """.split()
)
# ids of file descriptors before a redirection can't occur (no `<>`), but a bare number is odd enough for sh
_NUMBER = re.compile(r"[0-9]+")


@lru_cache(maxsize=16384)
def command_argv(run: str | tuple[str, ...], shell: str = "sh") -> tuple[str, ...]:
    """The argv of a `run`: a tuple as it is; a string as words, or as `sh -e -c` / `bash -eo pipefail -c`."""
    if isinstance(run, tuple):
        return run
    if is_plain(run):
        return tuple(run.split())
    # A script that begins with - or + would be read as an option of the shell.
    text = f" {run}" if run[:1] in ("-", "+") else run
    if shell == "bash":
        return ("bash", "-eo", "pipefail", "-c", text)
    return ("sh", "-e", "-c", text)


def is_plain(text: str) -> bool:
    """Whether `text` means the same with and without a shell."""
    if _PLAIN.fullmatch(text) is None:
        return False
    first = text.split(None, 1)[0]
    return first not in _SHELL_WORDS and _NUMBER.fullmatch(first) is None
