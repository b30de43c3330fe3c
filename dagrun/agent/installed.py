"""litellm as it is installed: where it is, and which vendors it knows. Files are read, nothing is imported.

The folder that dagrun was started in is never looked at: a project may hold a module of any name.
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.machinery import PathFinder

_VENDORS = os.path.join("types", "utils.py")  # `class LlmProviders` lists them
_MORE_VENDORS = os.path.join("llms", "openai_like", "providers.json")
_CLASS = re.compile(r"^class LlmProviders\(.*?\):\n(.*?)^\S", re.DOTALL | re.MULTILINE)
_MEMBER = re.compile(r'^    [A-Z0-9_]+ = "([^"]+)"', re.MULTILINE)


def litellm_folder() -> str | None:
    """The folder of the package litellm; None where it is not installed."""
    try:
        here = os.getcwd()
    except OSError:
        here = ""  # it was removed
    found = PathFinder.find_spec("litellm", [path for path in sys.path if path and os.path.realpath(path) != here])
    return None if found is None or not found.origin else os.path.dirname(found.origin)


def vendors() -> frozenset[str]:
    """The vendors that can be called, as models are written (`vendor/name`); empty where that can't be read."""
    folder = litellm_folder()
    if folder is None:
        return frozenset()
    try:
        with open(os.path.join(folder, _VENDORS), encoding="utf-8") as file:
            listed = _CLASS.search(file.read())
        with open(os.path.join(folder, _MORE_VENDORS), encoding="utf-8") as file:
            more = json.load(file)
    except (OSError, ValueError):
        return frozenset()
    if listed is None or not isinstance(more, dict):
        return frozenset()
    return frozenset(_MEMBER.findall(listed[1])) | frozenset(more)
