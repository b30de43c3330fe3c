"""What of the caller's environment a command may see: no keys, no undeclared secrets, no outer dagrun.

Pure: a mapping in, a mapping out. Taking names away is damage control for cooperating commands (an
author can bring any of them back with `pass_env`), not a wall; the wall is a sandbox's allow-list.
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
# Whole families that hold keys of a provider or tell where to find them.
_FAMILIES = ("AWS_", "AZURE_OPENAI_", "LITELLM_", "ANTHROPIC_", "OPENAI_")
_NAMED = frozenset({"GOOGLE_APPLICATION_CREDENTIALS", "SSH_ASKPASS", "PGPASSFILE", "PGPASSWORD", "MYSQL_PWD"})
# Our own, of a dagrun in which this one runs: a command must not write into the outer one's files.
_OWN = "DAGRUN_"


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
