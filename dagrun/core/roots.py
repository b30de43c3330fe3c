"""Roots in the file system as text: what a grant or a `deny` pattern means, and which lies inside which.

Only text is compared: a root lies inside another when its parts begin with the other's. Relative,
absolute and `~` roots can't be compared with each other, and a glob is a part like any other (only
the same glob is inside it): never wider than what is meant, sometimes narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, TypeAlias

Anchor: TypeAlias = Literal["", "/", "~"]
_GLOB = frozenset("*?[")
_MAX_PATH, _MAX_NAME = 4096, 255  # bytes: limits of the kernel
_KERNEL = ("proc", "sys", "dev")
_GIT_RUNS = (("hooks",), ("config",), ("info", "attributes"))  # git starts programs that these name


class Root(NamedTuple):
    """A place: `up` steps above the project directory (or from `/`, or from home), then `parts` down."""

    anchor: Anchor
    up: int
    parts: tuple[str, ...]

    def __str__(self) -> str:
        if self.anchor:
            return ("/" if self.anchor == "/" else "~/") + "/".join(self.parts)
        text = "/".join((*[".."] * self.up, *self.parts)) or "."
        return f"./{text}" if text.startswith("~") else text


KEY_NAMES = frozenset(
    ".env .env.* .netrc .npmrc .pypirc id_rsa* id_ed25519* id_ecdsa* *.pem *.key *.p12 .ssh .aws .gnupg .kube".split()
)
NO_KEYS = frozenset("*.example *.sample *.template *.pub".split())


def is_key(name: str) -> bool:
    """Whether a file or folder of this name is taken for one with keys in it: hidden unless it is named itself."""
    return any(fnmatchcase(name, p) for p in KEY_NAMES) and not any(fnmatchcase(name, p) for p in NO_KEYS)


Denied: TypeAlias = "Root | str"  # a place, or the pattern of a name at any depth


# ---------------------------------------------------------------- reading


def root_of(text: str) -> Root:
    """The place that a text without faults names; `dir/**` is `dir`."""
    anchor: Anchor = ""
    rest = text
    if text.startswith("/"):
        anchor = "/"
    elif text == "~" or text.startswith("~/"):
        anchor, rest = "~", text[1:]
    parts: list[str] = []
    for part in rest.split("/"):
        if part not in ("", ".") and not (part == "**" and parts[-1:] == ["**"]):
            parts.append(part)
    while parts and parts[-1] == "**":
        parts.pop()
    up = 0
    while not anchor and up < len(parts) and parts[up] == "..":
        up += 1
    return Root(anchor, up, tuple(parts[up:]))


def denied_of(text: str) -> Denied:
    """What a `deny` pattern without faults means: a name at any depth where there is no slash within it."""
    bare = text.rstrip("/")
    while bare.startswith("**/"):
        bare = bare[3:].lstrip("/")
    return bare if "/" not in bare and bare not in ("", ".", "..", "**", "~") else root_of(text)


def denied_text(denied: Denied) -> str:
    """A pattern that is read as the same again: a place always has a slash."""
    text = str(denied)
    return text if isinstance(denied, str) or "/" in text else f"./{text}"


def path_fault(text: str, *, write: bool = False, deny: bool = False) -> tuple[str, str] | None:
    """(message, hint) of a text that can be no root of `read` (`write`, `deny`), else None."""
    return _text_fault(text) or _form_fault(text) or (None if deny else _place_fault(text, write))


def text_fault(text: str, what: str) -> tuple[str, str] | None:
    """(message, hint) of a text that is empty or holds what nobody could see."""
    if not text:
        return f"{what} can't be empty", "remove it"
    bad = next((c for c in text if not c.isprintable()), "")
    if bad:
        named = "a newline" if bad == "\n" else f"the character U+{ord(bad):04X}"
        return f"{what} can't hold {named}", "remove it"
    return None


def _text_fault(text: str) -> tuple[str, str] | None:
    fault = text_fault(text, "a path")
    if fault:
        return fault
    for mark, instead in ((":", "one"), (",", "one"), ("\\", "/")):
        if mark in text:
            if instead == "/":
                return "a path can't hold a backslash", f"write {text.replace(mark, '/')}"
            return f"a path can't hold `{mark}`", "write each path as an item of its own, or grant the directory above"
    raw = text.encode()
    if len(raw) >= _MAX_PATH or any(len(part) > _MAX_NAME for part in raw.split(b"/")):
        return "this path is longer than a path can be", ""
    return None


def _form_fault(text: str) -> tuple[str, str] | None:
    if text.startswith("~") and text != "~" and not text.startswith("~/"):
        return "the home of another user can't be named", f"write it out, or ./{text} for a file of that name"
    at = text.find("$")
    if 0 <= at < len(text) - 1 and (text[at + 1] in "{(_" or text[at + 1].isalpha()):
        return "a variable is not replaced here", "write the path out; ~/ is the home directory"
    root = root_of(text)
    if ".." in root.parts:
        return "`..` may only stand at the beginning of a relative path", f"write {_straight(root)}"
    return None


def _straight(root: Root) -> str:
    """The same path with its `..` taken out by name."""
    parts: list[str] = []
    up = root.up
    for part in root.parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            up += not root.anchor
    return str(Root(root.anchor, up, tuple(parts)))


def _place_fault(text: str, write: bool) -> tuple[str, str] | None:
    root = root_of(text)
    verb = "written" if write else "read"
    if not root.parts and root.anchor:
        what = "the whole machine" if root.anchor == "/" else "the whole home directory"
        return f"{what} can't be granted", "name the directories that have to be " + verb
    if root.anchor == "/" and (root.parts[0] in _KERNEL or not _GLOB.isdisjoint(root.parts[0])):
        where = f"/{root.parts[0]}"
        hint = "a sandbox has its own" if root.parts[0] in _KERNEL else "name the directories"
        return f"nothing of `{where}` can be granted", hint
    if root.anchor == "~" and root.parts[0] in ("*", ".*", "**"):
        return "the whole home directory can't be granted", "name the directories that have to be " + verb
    if ".dagrun" in root.parts:
        return "`.dagrun` is never visible to a node", "what a node needs comes by `inputs`"
    if write and (run := _git_runs(root.parts)):
        return f"`{run}` is never written by a node: git runs what it names", "grant the directory above; it stays out"
    return None


def _git_runs(parts: tuple[str, ...]) -> str:
    """The part of a repository that a write root names and that git would run programs from."""
    for k, part in enumerate(parts):
        for tail in _GIT_RUNS:
            if part == ".git" and parts[k + 1 : k + 1 + len(tail)] == tail:
                return "/".join((".git", *tail))
    return ""


# ---------------------------------------------------------------- order


def inside(child: Root, parent: Root) -> bool:
    """Whether a root is another one, or lies below it."""
    if child.anchor != parent.anchor or child.up > parent.up:
        return False
    if child.up < parent.up:  # what is above the project holds all of it
        return not parent.parts
    return child.parts[: len(parent.parts)] == parent.parts


def deepest(roots: Iterable[Root]) -> tuple[Root, ...]:
    """The roots without those that lie inside another, in order; files with keys stay, as naming them shows them."""
    found = set(roots)
    top = max((root.up for root in found), default=0)
    kept = [root for root in found if _names_key(root) or not any(above in found for above in _above(root, top))]
    return tuple(sorted(kept, key=lambda r: (r.anchor, -r.up, r.parts)))


def _names_key(root: Root) -> bool:
    return bool(root.parts) and is_key(root.parts[-1])


def common(some: Iterable[Root], others: Iterable[Root]) -> tuple[Root, ...]:
    """What lies in both sets of roots."""
    left, right = set(some), set(others)
    top = max((root.up for root in left | right), default=0)
    both = [*(left & right)]
    both += [root for root in left - right if any(above in right for above in _above(root, top))]
    both += [root for root in right - left if any(above in left for above in _above(root, top))]
    return deepest(both)


def _above(root: Root, top: int) -> Iterator[Root]:
    """Every other root that a root lies inside of, up to `top` steps above the project: `inside`, turned round."""
    for length in range(len(root.parts) - 1, -1, -1):
        yield root._replace(parts=root.parts[:length])
    if not root.anchor:
        for up in range(root.up + 1, top + 1):
            yield Root("", up, ())


def denies(denied: Denied, root: Root) -> bool:
    """Whether nothing of a root is left by a `deny` pattern; in these a `*` means leading dots too."""
    if isinstance(denied, str):
        return any(part == denied or (not is_glob(part) and _fits(part, denied)) for part in root.parts)
    same = _same_base(root, denied)
    return inside(root, denied) or (same and _matches(literal(root).parts, denied.parts, _fits))


def covers(wide: Denied, narrow: Denied) -> bool:
    """Whether one `deny` pattern takes away at least what another does; False where it can't be told."""
    if isinstance(narrow, Root):
        return denies(wide, narrow)
    return wide == narrow or (isinstance(wide, str) and not is_glob(narrow) and _fits(narrow, wide))


# ---------------------------------------------------------------- globs, against names


def is_glob(text: str) -> bool:
    """Whether a text has a wildcard."""
    return not _GLOB.isdisjoint(text)


def literal(root: Root) -> Root:
    """The part of a root before its first wildcard: all that the root means is below it."""
    at = next((k for k, part in enumerate(root.parts) if is_glob(part)), len(root.parts))
    return root._replace(parts=root.parts[:at])


def matches(root: Root, pattern: Root) -> bool:
    """Whether a place without wildcards is one that a pattern means, or lies below one."""
    return inside(root, pattern) or (_same_base(root, pattern) and _matches(root.parts, pattern.parts, _shown))


def _same_base(a: Root, b: Root) -> bool:
    return a.anchor == b.anchor and a.up == b.up


def _fits(name: str, pattern: str) -> bool:
    if not is_glob(pattern):
        return name == pattern
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


def _shown(name: str, pattern: str) -> bool:
    """Whether a name is meant by a part of a grant: a leading dot only by a dot."""
    return _fits(name, pattern) and (not name.startswith(".") or pattern.startswith("."))


def _matches(parts: tuple[str, ...], wanted: tuple[str, ...], fits: Callable[[str, str], bool]) -> bool:
    """Whether the beginning of a path matches all parts of a pattern; `**` is any number of directories."""
    reached = {0}  # how many parts of the pattern can be used up so far
    for k in range(len(parts) + 1):
        for at in sorted(reached):
            if at < len(wanted) and wanted[at] == "**":
                reached.add(at + 1)
        if len(wanted) in reached:
            return True
        if k < len(parts):
            ahead = {at + 1 for at in reached if wanted[at] != "**" and fits(parts[k], wanted[at])}
            reached = ahead | {at for at in reached if wanted[at] == "**"}
    return False
