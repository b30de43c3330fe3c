"""Hostile values at every door: nothing is run, nothing is evaluated twice, nothing raw reaches a terminal.

Each value would make a file named `canary` if a shell, a template or an option parser ever took it
for more than text. All of it goes through the real program.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from .space import Done, Space

SHELL = [
    "$(touch canary)",
    "`touch canary`",
    "; touch canary",
    "x && touch canary #",
    "| touch canary",
    "x\ntouch canary\n",
    "'; touch canary; '",
    '"; touch canary; "',
    "${IFS}touch${IFS}canary",
    "a > canary",
    "() { :; }; touch canary",
    "*",
    "~root",
    "!!",
    "%s%n%d",
    "\\",
]
TEMPLATE = [
    "${{ env.MARK }}",
    "${{ params.other }}",
    "$${{ env.MARK }}",
    "${{ '${{ env.MARK }}' }}",
    "${{ fromJSON('[1]')[0] }}",
    "${{",
    "{{ 7 * 7 }}",
    "%(MARK)s",
    "{0.__class__}",
    "$MARK",
]
OPTIONS = ["--help", "-rf", "--", "-", "--version=1", "-e", "-o canary", "--output=canary"]
SCREEN = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;owned\x07",
    "\x1b]52;c;Y2FuYXJ5\x07",
    "\x9b31m",
    "[bold red]x[/bold red][link=http://x]y[/link]",
    "a\u202egnp.exe",
    "\u2066\u2069\u200b\ufeff",
    "\rFAKE  completed",
    "\x08\x08\x08over",
    "\x07\x00"[:1],
]
HOSTILE = [*SHELL, *TEMPLATE, *OPTIONS, *SCREEN, "", " ", "x" * 5000, "/../../etc/passwd", "\U0001f600é", "'", '"']
_RAW = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def harmless(done: Done) -> Done:
    """The same, once what it printed can do nothing to a terminal and no traceback is in it."""
    for text in (done.out, done.err):
        assert _RAW.findall(text) == [], text
        assert "Traceback" not in text, text
        assert "please report" not in text, text
    return done


def untouched(space: Space) -> None:
    """No value was ever taken for a command."""
    assert [str(p) for p in space.path.rglob("canary*")] == []
    assert [str(p) for p in space.path.parent.glob("canary*")] == []


SHOWN = ("status", "trace show", "trace list", "outputs", "plan last", "export last", "replan history", "runs")


def show(space: Space, *lines: str) -> None:
    """Commands that show a run to people, by default all."""
    for line in lines or SHOWN:
        harmless(space.run(*line.split()))
    untouched(space)


ECHO = """
import json, os, sys
with open("got.json", "a") as file:
    json.dump([os.environ.get("VALUE"), os.environ.get("INPUT_VALUE"), *sys.argv[1:]], file)
    file.write("\\n")
"""


def got(space: Space) -> list[list[str | None]]:
    return [json.loads(line) for line in space.lines("got.json")]


# ---------------------------------------------------------------- values of a flow


def test_params_stay_what_they_are(space: Space) -> None:
    space.write("echo.py", ECHO)
    space.write("params.json", json.dumps({f"p{k}": value for k, value in enumerate(HOSTILE)}))
    lines = ["params:", "  other: {default: SECOND}", *[f"  p{k}: {{}}" for k in range(len(HOSTILE))], "nodes:"]
    for k in range(len(HOSTILE)):
        at = f"${{{{ params.p{k} }}}}"
        lines += [
            f"  n{k}:",
            f"    env: {{VALUE: '{at}', MARK: EVALUATED}}",
            f"    inputs: {{value: params.p{k}}}",
            f"    run: [python3, echo.py, '{at}', 'x={at}']",
            f"  s{k}: {{env: {{V: '{at}'}}, run: 'printf \"%s\" \"$V\"'}}",
        ]
    space.flow("\n".join(lines) + "\n")
    done = harmless(space.execute("--params", "params.json", "-j", "1"))
    assert done.code == 0, done.err
    assert sorted(got(space)) == sorted([v, v, v, f"x={v}"] for v in HOSTILE)
    assert [space.log(f"s{k}").decode() for k in range(len(HOSTILE))] == HOSTILE
    show(space)


def test_params_of_the_command_line_stay_what_they_are(space: Space) -> None:
    values = ["$(touch canary)", "${{ env.MARK }}", "-rf", "\x1b[31mred", "a=b", ""]
    lines = ["params:", *[f"  p{k}: {{type: string}}" for k in range(len(values))], "nodes:"]
    for k in range(len(values)):
        lines.append(f"  n{k}: {{env: {{V: '${{{{ params.p{k} }}}}', MARK: EVALUATED}}, run: 'printf \"%s\" \"$V\"'}}")
    space.flow("\n".join(lines) + "\n")
    given = [word for k, value in enumerate(values) for word in ("-p", f"p{k}={value}")]
    assert harmless(space.execute(*given)).code == 0
    assert [space.log(f"n{k}").decode() for k in range(len(values))] == values
    show(space)


def test_outputs_stay_what_they_are_from_node_to_node(space: Space) -> None:
    values = [v for v in HOSTILE if "\0" not in v]
    space.write("values.json", json.dumps(values))
    space.write("echo.py", ECHO)
    space.write(
        "give.py",
        """
        import json, os
        values = json.load(open("values.json"))
        json.dump({f"o{k}": v for k, v in enumerate(values)}, open(os.environ["DAGRUN_OUTPUT"], "w"))
        """,
    )
    lines = ["nodes:", "  give:", "    run: python3 give.py", "    outputs:"]
    lines += [f"      o{k}: {{}}" for k in range(len(values))]
    for k in range(len(values)):
        lines += [
            f"  n{k}:",
            f"    inputs: {{value: nodes.give.o{k}}}",
            "    env: {VALUE: '<${{ inputs.value }}>', MARK: EVALUATED}",
            "    run: [python3, echo.py, '${{ inputs.value }}']",
        ]
    space.flow("\n".join(lines) + "\n")
    done = harmless(space.execute("-j", "1"))
    assert done.code == 0, done.err
    found = {row[1]: row for row in got(space)}
    assert found == {v: [f"<{v}>", v, v] for v in values}
    show(space)


def test_what_nodes_print_is_text_wherever_it_is_shown(space: Space) -> None:
    space.write("values.json", json.dumps(HOSTILE))
    space.write(
        "say.py", 'import json, sys\nfor v in json.load(open("values.json")):\n    print(v, flush=True)\nsys.exit(1)\n'
    )
    space.flow("\n".join(["nodes:", *[f"  n{k}: {{run: python3 say.py {k}}}" for k in range(2)]]) + "\n")
    for words in (["--ui", "log"], ["--ui", "quiet"], ["--ui", "auto"], ["--junit", "j.xml"], ["-v"]):
        assert harmless(space.execute(*words)).code == 1
    show(space)
    # the one place for bytes as they are is a pipe
    assert b"\x1b[31mred" in space.log("n0")


def test_summaries_errors_and_reviews_are_shown_harmlessly(space: Space) -> None:
    lines = ["nodes:"]
    for k, value in enumerate(SCREEN):
        space.write(f"value{k}", value)
        lines += [
            f"  a{k}: {{run: cat value{k}, outputs: {{v: {{from: stdout}}}}}}",
            f"  b{k}: {{run: 'cat value{k} >&2; exit 1', continue_on_error: true}}",
            f"  c{k}: {{run: cat value{k}, outputs: {{v: {{from: json}}}}, continue_on_error: true}}",
            f"  ask{k}:",
            f"    needs: [b{k}, c{k}]",
            f"    inputs: {{v: nodes.a{k}.v}}",
            "    review: {message: 'Do ${{ inputs.v }}?'}",
        ]
    space.flow("\n".join(lines) + "\n")
    assert harmless(space.execute()).code == 4
    waiting = harmless(space.run("review"))
    assert [k for k in range(len(SCREEN)) if f"ask{k}" not in waiting.out] == []
    show(space, "status", "trace show")
    *first, last = range(len(SCREEN))
    for k in first:
        assert harmless(space.run("review", f"ask{k}", "--reject", "--no-resume", "-m", SCREEN[k])).code == 0
    assert harmless(space.run("review", f"ask{last}", "--reject", "-m", SCREEN[last])).code == 1
    for k in range(len(SCREEN)):
        assert space.statuses()[f"c{k}"] == "failed"
    show(space, "trace show", "outputs")


def test_names_of_files_are_text(space: Space) -> None:
    names = ["\x1b[31m", "\u202egnp", "a\nb", "$(touch canary)", "; touch canary", "-rf", "[red]x", "'"]
    lines = ["params:", *[f"  p{k}: {{}}" for k in range(len(names))], "nodes:"]
    for k in range(len(names)):
        (space.path / f"out{k}").mkdir()
        at = f"env: {{NAME: '${{{{ params.p{k} }}}}'}}"
        lines += [
            f"  a{k}: {{run: 'printf \"%s\" \"$NAME\" > \"out{k}/$NAME\"', {at}, artifacts: [out{k}/*]}}",
            f"  b{k}: {{needs: a{k}, env: {{H: \"${{{{ hashFiles('out{k}/*') }}}}\"}}, run: 'test -n \"$H\"'}}",
            f"  stray{k}:",
            f"    needs: b{k}",
            f"    {at}",
            f"    run: 'cp /bin/sleep \"out{k}/$NAME\"; setsid \"./out{k}/$NAME\" 300 & exit 0'",
        ]
    space.flow("\n".join(lines) + "\n")
    given = [word for k, name in enumerate(names) for word in ("-p", f"p{k}={name}")]
    assert harmless(space.execute(*given)).code == 0
    show(space, "status", "trace show")
    for k, name in enumerate(names):
        assert (space.path / f"out{k}" / name).exists()
        harmless(space.run("trace", "show", "--node", f"a{k}"))
        harmless(space.run("outputs", f"a{k}"))


def test_the_environment_of_the_caller_is_text(space: Space) -> None:
    space.write("echo.py", ECHO)
    values = [v for v in HOSTILE if v]
    at = [f"${{{{ env.CALLER{k} }}}}" for k in range(len(values))]
    nodes = [f"  n{k}: {{run: [python3, echo.py, '{a}'], env: {{VALUE: '{a}'}}}}" for k, a in enumerate(at)]
    space.flow("\n".join(["nodes:", *nodes]) + "\n")
    assert harmless(space.execute("-j", "1", env={f"CALLER{k}": value for k, value in enumerate(values)})).code == 0
    assert sorted(got(space), key=str) == sorted([[v, None, v] for v in values], key=str)
    untouched(space)


# ---------------------------------------------------------------- words of the command line

WORDS = [
    v
    for v in (*SHELL, *TEMPLATE, *OPTIONS, *SCREEN, "..", "../../x", "/etc/passwd", "a/b", "x" * 5000)
    if "\0" not in v
]


LINES = [
    *("execute flow.yaml --only=@", "execute flow.yaml --fail=@", "execute flow.yaml --outputs-of=@"),
    *("execute flow.yaml -p @=1", "execute flow.yaml --accept-missing=@,x", "execute -- @", "logs -- @", "logs -- @ a"),
    *("status -- @", "trace show -- @", "trace show --node=@", "outputs -- @", "cancel -- @", "review -- @"),
    *("resume -- @", "plan -- @", "diff -- @ flow.yaml", "replan --remove=@:bridge --yes", "replan --rewire=a=@ --yes"),
    "replan --retry=@ --yes",
]


def test_hostile_words_are_refused_as_text(space: Space) -> None:
    space.flow("nodes: {a: {run: 'true'}}\n")
    assert space.execute().code == 0
    before = {p for p in space.path.rglob("*") if ".dagrun" not in p.parts}
    for k, word in enumerate(WORDS):
        # every word at some doors, some words at every door
        lines = LINES if word in ("$(touch canary)", "\x1b]0;owned\x07") else [LINES[k % len(LINES)]]
        for line in lines:
            done = harmless(space.run(*[part.replace("@", word) for part in line.split()]))
            assert done.code not in (0, 70), (line, word, done)
    assert {p for p in space.path.rglob("*") if ".dagrun" not in p.parts} == before
    untouched(space)


def test_words_of_people_are_kept_and_shown_as_text(space: Space) -> None:
    values = ["$(touch canary)", "${{ env.MARK }}", "[red]x[/red]", "-rf", "\x1b[31m", "\u202egnp"]
    nodes = [
        f"  ask{k}: {{review: {{message: Go on?}}}}\n  b{k}: {{needs: ask{k}, run: 'true'}}\n"
        for k in range(len(values))
    ]
    space.flow("nodes:\n" + "".join(nodes))
    assert harmless(space.execute()).code == 4
    *first, last = range(len(values))
    for k, value in enumerate(values):
        patch = {"operations": [{"modify": {"id": f"b{k}", "set": {"title": value, "env": {"V": "x"}}}}]}
        patch["trigger"] = {"type": "requirement", "reason": value}  # type: ignore[assignment]
        space.write("patch.json", json.dumps(patch))
        control = not value.isprintable()
        assert harmless(space.run("replan", "--patch", "patch.json", "--yes")).code == (3 if control else 0)
        resume = ["--no-resume"] if k in first else []
        assert harmless(space.run("review", f"ask{k}", "--approve", "-m", value, *resume)).code == 0
    assert space.statuses()[f"b{last}"] == "completed"
    show(space)


# ---------------------------------------------------------------- the flow file


def written_with(space: Space, values: list[str]) -> list[Done]:
    """A flow file with these texts wherever one can stand, at each door that takes such a file."""
    lines = [f"description: {json.dumps(' '.join(values))}", "params:"]
    lines += [f"  p{k}: {{default: x, description: {json.dumps(value)}}}" for k, value in enumerate(values)]
    lines.append("nodes:")
    for k, value in enumerate(values):
        quoted = json.dumps(value)
        lines.append(f"  a{k}: {{title: {quoted}, run: 'true', env: {{V: {quoted}}}}}")
        lines.append(f"  b{k}: {{run: [echo, {quoted}], needs: a{k}}}")
    space.flow("\n".join(lines) + "\n")
    doors = (["validate", "flow.yaml"], ["plan", "flow.yaml"], ["execute", "flow.yaml", "-n"], ["execute", "flow.yaml"])
    return [harmless(space.run(*words)) for words in doors]


@pytest.mark.parametrize("value", [v for v in SCREEN if not v.isprintable()], ids=repr)
def test_a_control_character_in_a_flow_file_is_refused_harmlessly(space: Space, value: str) -> None:
    assert [done.code for done in written_with(space, [value])] == [3] * 4
    assert space.runs() == []
    untouched(space)


def test_texts_of_a_flow_file_are_shown_harmlessly(space: Space) -> None:
    values = [v for v in (*SHELL, *SCREEN) if v.isprintable()]
    assert [done.code for done in written_with(space, values)] == [0] * 4
    show(space)


def test_ids_can_hold_nothing_of_it(space: Space) -> None:
    names = [value for value in (*SHELL, *SCREEN, *TEMPLATE, *OPTIONS) if value]
    nodes = "".join(f"  {json.dumps(name)}: {{run: 'true', needs: {json.dumps(name + 'x')}}}\n" for name in names)
    space.flow(f"nodes:\n  b: {{run: 'true'}}\n{nodes}")
    done = harmless(space.execute())
    assert done.code == 3
    assert done.err.count("is no id") >= len([n for n in names if n.isprintable()])
    untouched(space)


@pytest.mark.parametrize("text", ["echo ${{ params.p }}", 'echo "${{ inputs.x }}"', "sh -c '${{ env.X }}'"])
def test_an_expression_in_a_shell_text_is_refused_with_the_safe_way(space: Space, text: str) -> None:
    space.flow(f"params: {{p: {{}}}}\nnodes: {{a: {{run: {json.dumps(text)}}}}}\n")
    done = harmless(space.execute("-p", "p=$(touch canary)"))
    assert done.code == 3
    assert "env:" in done.err
    untouched(space)


# ---------------------------------------------------------------- what nodes write


def test_a_patch_of_a_node_is_data(space: Space) -> None:
    reasons = [v for v in HOSTILE if v.strip() and "\0" not in v]
    space.write("reasons.json", json.dumps(reasons))
    space.write(
        "patch.py",
        """
        import json, os, sys
        reason = json.load(open("reasons.json"))[int(sys.argv[1])]
        json.dump(
            {"workflow": reason, "trigger": {"type": "optimization", "reason": reason},
             "operations": [{"modify": {"id": "end", "set": {"title": reason, "timeout": reason}}}]},
            open(os.environ["DAGRUN_PATCH"], "w"),
        )
        """,
    )
    nodes = "".join(f"  n{k}: {{run: [python3, patch.py, '{k}']}}\n" for k in range(len(reasons)))
    space.flow(f"nodes:\n{nodes}  end: {{run: 'true', needs: [n0]}}\n")
    assert harmless(space.execute()).code == 0
    show(space)
    harmless(space.run("replan", "history", "--yaml"))


def test_a_canary_that_is_really_run_is_found(space: Space) -> None:
    space.flow("nodes: {a: {run: 'touch canary'}}\n")
    assert space.execute().code == 0
    with pytest.raises(AssertionError):
        untouched(space)
    Path(space.path / "canary").unlink()
    assert shlex.quote("$(touch canary)") != "$(touch canary)"
    assert os.path.isdir(space.path)
