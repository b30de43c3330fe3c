"""What of the caller's environment a command may see: all but keys, or only what a list allows.

Pure: a mapping in, a mapping out. Taking names away is damage control for cooperating commands (an
author can bring any of them back with `pass_env`); what is confined starts from a short list instead.
Neither ever gives on the variables of an outer dagrun, or of declared secrets that a node does not name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache

_CREDENTIAL = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY"
    r"|AUTH_KEY|CREDENTIALS?)(?:$|_)",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)  # others come from exported shell functions
# Whole families that hold keys of a provider or tell where to find them.
_FAMILIES = ("AWS_", "AZURE_OPENAI_", "LITELLM_", "ANTHROPIC_", "OPENAI_")
_NAMED = frozenset({"GOOGLE_APPLICATION_CREDENTIALS", "SSH_ASKPASS", "PGPASSFILE", "PGPASSWORD", "MYSQL_PWD"})
# Our own, of a dagrun in which this one runs: a command must not write into the outer one's files.
_OWN = "DAGRUN_"

# What a command needs to find programs, to speak the user's language and to know who it works for.
_ALLOWED = frozenset("PATH LANG LANGUAGE TERM TZ USER LOGNAME SHELL".split())
# They make a program load or run what they name, also the programs that stand around a sandbox and
# are started with the environment of its command.
_LOADER_FAMILIES = ("LD_", "GLIBC_", "BASH_FUNC_")
_LOADER = frozenset("GCONV_PATH LOCPATH BASH_ENV SHELLOPTS BASHOPTS".split())


def base_environment(
    environ: Mapping[str, str], *, pass_env: Iterable[str] = (), secrets_named: Iterable[str] = ()
) -> dict[str, str]:
    """The caller's environment as a command may see it.

    Without provider keys, credential-like names, DAGRUN_* of an outer run, and `secrets_named`: the
    variables of declared secrets that this node does not name. `pass_env` (names or globs such as
    `GITHUB_*`, case-sensitive) brings back all but the last two.
    """
    hidden = frozenset(secrets_named)
    patterns = tuple(pass_env)
    return {
        name: value
        for name, value in environ.items()
        if name not in hidden
        and not name.startswith(_OWN)
        and (not is_credential(name) or any(fnmatchcase(name, pattern) for pattern in patterns))
    }


@lru_cache(maxsize=4096)
def is_credential(name: str) -> bool:
    """Whether a variable of this name is taken for a key or a password."""
    return name in _NAMED or name.startswith(_FAMILIES) or _CREDENTIAL.search(name) is not None


def allow_list_environment(
    environ: Mapping[str, str], *, pass_env: Iterable[str] = (), secrets_named: Iterable[str] = (), system: bool = True
) -> dict[str, str]:
    """What of the caller's environment reaches a command that is confined: a list of names, and `pass_env`.

    `system` False leaves out the list too (a container has its own). HOME and TMPDIR are not in it,
    as they become private folders. Variables of the loader and keys never are, not even by
    `pass_env`: a key enters a sandbox as a declared secret of its node, or not at all.
    """
    hidden = frozenset(secrets_named)
    patterns = tuple(pass_env)
    return {
        name: value
        for name, value in environ.items()
        if ((system and (name in _ALLOWED or name.startswith("LC_"))) or any(fnmatchcase(name, p) for p in patterns))
        and name not in hidden
        and not name.startswith(_OWN)
        and not is_loader(name)
        and not is_credential(name)
        and _NAME.fullmatch(name)
    }


def is_loader(name: str) -> bool:
    """Whether a variable makes programs load or run something else before they do their work."""
    return name in _LOADER or name.startswith(_LOADER_FAMILIES)
