"""Keeps README and docs/ true: links lead somewhere, flags exist, shown output is what is printed.

    <!-- output: dagrun execute workflows/hello.yaml -->     the next fenced block is its output
    <!-- output needs bwrap: dagrun … -->                    the same, where this program is installed
    ```yaml with `version:` and `nodes:`                     a whole workflow, which is valid
    ## `dagrun execute FILE`                                 this section names every flag of it

Without arguments the output blocks are written anew; with --check nothing is written and every
difference is reported. Commands of one page run in one temporary project that has the examples in
it; run ids, durations and clock times may differ, and lines may come in another order.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(<!-- output(?: needs (?P<needs>[\w-]+))?: (?P<command>[^\n]+?) -->\n+```text\n)(?P<output>.*?)(?P<tail>\n?```)",
    re.DOTALL,
)
FLOW = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INVALID = "# an error"  # a comment in a shown flow: it is to be refused
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)?(?:#([^)\s]+))?\)")
SECTION = re.compile(r"^## `dagrun ([a-z][a-z -]*[a-z])[^`]*`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SHOWN_ID = "r7k2"
EVERYWHERE = frozenset({"--help", "--json", "--quiet", "--verbose", "--no-input", "--color", "--version"})


def pages() -> list[Path]:
    """README, CHANGELOG, CONTRIBUTING and all of docs/."""
    return [p for p in [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md"))] if p.is_file()]


def run(command: str, folder: str) -> str:
    """What a command prints to both streams, as CI would show it, with the run's id as SHOWN_ID."""
    words = shlex.split(command)
    argv = [sys.executable, "-m", "dagrun", *words[1:]] if words[0] == "dagrun" else words
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "CI": "true", "COLUMNS": "80", "NO_COLOR": "1", "PYTHONPATH": path}
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITLAB_CI"):
        env.pop(name, None)
    done = subprocess.run(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    text = done.stdout
    runs = Path(folder, ".dagrun", "runs")
    for run_id in sorted((p.name for p in runs.glob("*")), key=len, reverse=True):
        text = text.replace(run_id, SHOWN_ID)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def loose(text: str) -> list[str]:
    """The lines of an output without what differs from run to run."""
    text = re.sub(r"\d\d:\d\d:\d\d", "CLOCK", text)
    text = re.sub(r"\b(?:\d+(?:\.\d+)?(?:ms|[smh]))+(?:\d\d[sm])?(?!\w)", "TIME", text)
    text = re.sub(r"\d+(?:\.\d+)? ?[KM]i?B\b", "SIZE", text)
    return sorted(" ".join(line.split()) for line in text.splitlines() if line.strip())


def outputs(page: Path, *, check: bool) -> list[str]:
    """Run the commands of a page; write what they print, or say where that is not what is shown."""
    text = page.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        return []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "workflows", Path(folder, "workflows"))

        def renew(match: re.Match[str]) -> str:
            if match["needs"] and shutil.which(match["needs"]) is None and not os.environ.get("CI"):
                print(f"not run: `{match['command']}` needs {match['needs']}")
                return match[0]
            got = run(match["command"], folder)
            if loose(got) != loose(match["output"]):
                where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
                diff = difflib.unified_diff(loose(match["output"]), loose(got), "shown", "printed", lineterm="", n=1)
                problems.append("\n    ".join([f"{where}: `{match['command']}` prints something else", *diff]))
                tail = match["tail"]
                return f"{match[1]}{got}{tail if tail.startswith(chr(10)) else chr(10) + tail}"
            return match[0]

        renewed = BLOCK.sub(renew, text)
    if not check and renewed != text:
        page.write_text(renewed, encoding="utf-8")
        print(f"written: {page.relative_to(ROOT)}")
    return problems if check else []


def flows(page: Path) -> list[str]:
    """Whole workflows of a page that are not valid, and those that claim an error and are."""
    problems = []
    text = page.read_text(encoding="utf-8")
    for match in FLOW.finditer(text):
        if not re.search(r"^version:.*^nodes:", match[1], re.MULTILINE | re.DOTALL):
            continue
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "flow.yaml").write_text(match[1], encoding="utf-8")
            said = run("dagrun validate flow.yaml", folder)
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        if (": ok" in said) == (INVALID in match[1]):
            problems.append(f"{where}: the workflow is not what it claims to be:\n{said}")
    return problems


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    problems = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        to = page.parent / target if target else page
        if not to.exists():
            problems.append(f"{page.relative_to(ROOT)}: no such file: {target}")
        elif anchor and to.suffix == ".md" and anchor not in anchors(to):
            problems.append(f"{page.relative_to(ROOT)}: no such heading: {target}#{anchor}")
    return problems


def flags(page: Path) -> list[str]:
    """Commands and flags that a page names and dagrun doesn't have, and the other way round."""
    problems = []
    for command, section in SECTION.findall(page.read_text(encoding="utf-8")):
        shown = run(f"dagrun {command} --help", str(ROOT))
        if "Usage:" not in shown:
            problems.append(f"{page.relative_to(ROOT)}: there is no `dagrun {command}`")
            continue
        named, real = set(FLAG.findall(section)), set(FLAG.findall(shown))
        for flag in sorted(named - real - EVERYWHERE):
            problems.append(f"{page.relative_to(ROOT)}: `dagrun {command}` has no {flag}")
        for flag in sorted(real - named - EVERYWHERE):
            problems.append(f"{page.relative_to(ROOT)}: `dagrun {command}` has {flag}, which is not described")
    return problems


def main() -> int:
    check = "--check" in sys.argv[1:]
    problems = [p for page in pages() for p in [*links(page), *flags(page), *flows(page), *outputs(page, check=check)]]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        print("  help: make docs writes the outputs; the rest is to be mended by hand", file=sys.stderr)
    else:
        print("Docs: up to date")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
