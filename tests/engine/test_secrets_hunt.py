"""Canary secrets: nodes leak them in every form at every door, and no door lets them out.

Everything that dagrun stores (the run, the cache of plans, what is left of the exchange) and all that
its commands print is searched for every form; so is the command line of every process meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from dagrun.sandbox import procs

from .space import Done, Space

ENV, FILE, COMMAND = 'env-C4nary/"+ü&x', "file-C4nary-7f3a9c", "cmd-C4nary'$HOME`x"
CANARIES = (ENV, FILE, COMMAND)
HERE = {"FROM_ENV": ENV, "LC_ALL": "C.UTF-8"}


def forms(value: str) -> set[bytes]:
    """What must not be found: the value as tools write it."""
    raw = value.encode()
    texts = {value, quote(value), quote(value, safe=""), quote_plus(value), raw.hex(), raw.hex().upper()}
    texts |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    found = {text.encode() for text in texts}
    for shift in range(3):
        for encode in (b64encode, urlsafe_b64encode):
            start, end = (shift * 8 + 5) // 6, (shift + len(raw)) * 8 // 6
            found.add(encode(bytes(shift) + raw)[start:end])
    return found


FORMS = set().union(*map(forms, CANARIES))


def leaks(data: bytes) -> list[bytes]:
    return [form for form in FORMS if form in data]


LEAK = """
import base64, json, os, sys, urllib.parse
names = ["A", "B", "C"]
def shown():
    for name in names:
        v = os.environ[name]; raw = v.encode()
        yield v
        yield "x" + v + v + "y"
        yield from (base64.b64encode(b"k" * n + raw + b"zz").decode() for n in range(3))
        yield from (base64.urlsafe_b64encode(b"k" * n + raw + b"zz").decode() for n in range(3))
        yield from (raw.hex(), raw.hex().upper(), urllib.parse.quote(v), urllib.parse.quote(v, safe=""))
        yield from (urllib.parse.quote_plus(v), json.dumps(v), json.dumps(v, ensure_ascii=False), repr(v))
"""

FLOW = """
secrets:
  A: {env: FROM_ENV}
  B: {file: secret.txt}
  C: {command: [cat, command.txt]}
nodes:
"""
ALL = "secrets: [A, B, C]"


@pytest.fixture
def den(space: Space) -> Space:
    """A project with three secrets and `leak.py`, which says each of them in many ways."""
    space.write("secret.txt", FILE + "\n", mode=0o600)
    space.write("command.txt", COMMAND + "\n", mode=0o600)
    space.write("leak.py", LEAK)
    return space


def flow(den: Space, text: str) -> None:
    """Write a flow in which `ALL` gives a node all three."""
    den.flow(text.replace("ALL", ALL))


def stored(space: Space) -> list[str]:
    """Every file of dagrun in which a secret is found, with the form; the sources are not dagrun's."""
    cache = Path(space.environ({})["XDG_CACHE_HOME"])
    found = []
    for folder in (space.path / ".dagrun", cache):
        for path in folder.rglob("*"):
            if leaks(os.fsencode(path)):
                found.append(f"the name {path}")
            if path.is_file():
                found += [f"{path}: {form!r}" for form in leaks(path.read_bytes())]
    return found


def clean(done: Done) -> Done:
    """The same, once nothing secret was found in what it printed."""
    for text in (done.out, done.err):
        found = leaks(text.encode())
        assert found == [], text
    return done


SHOWN = (
    *("status", "status --json", "trace show", "trace show --json", "trace list", "outputs", "outputs --json"),
    *("plan last", "export last", "replan history", "replan history --yaml", "trace show --failures"),
)


def tell(space: Space, *lines: str) -> None:
    """Commands that show a run (by default every one), with nothing secret in what they print."""
    logs = [f"logs {name} {flag}" for name in space.statuses() for flag in ("", "--raw", "--json")]
    for line in lines or (*SHOWN, *logs):
        done = clean(space.run(*line.split(), env=HERE))
        assert done.code == 0, (line, done)


# ---------------------------------------------------------------- control


def test_the_hunter_finds_what_is_there(den: Space) -> None:
    den.flow("""
    secrets: {A: {env: FROM_ENV}}
    nodes:
      leak: {run: "cat secret.txt && printf '%s' env-C4nary-not-it && base64 -w0 command.txt"}
    """)
    assert den.execute(env=HERE).code == 0
    assert FILE.encode() in leaks(den.log("leak"))
    assert any("leak.1.out" in line for line in stored(den))


# ---------------------------------------------------------------- doors


def test_logs_and_summaries(den: Space) -> None:
    den.write("logs.py", LEAK + "for text in shown():\n    print(text)\n    print(text, file=sys.stderr)\n")
    flow(
        den,
        FLOW
        + """
  good: {ALL, run: python3 logs.py}
  bad: {ALL, run: "python3 logs.py; python3 logs.py | tail -1; exit 3"}
  wrapped: {ALL, run: "printenv A B C C C C C C | base64; printenv B B B B B B | xxd -p || true"}
  traced: {ALL, run: ["sh", "-xc", "echo \\"$A\\" \\"$B\\" \\"$C\\"; x=$C"]}
""",
    )
    done = clean(den.execute(env=HERE))
    assert done.code == 1
    assert b"*" * 10 in den.log("good")
    assert den.log("good").count(b"\n") > 30
    assert stored(den) == []
    tell(den)


def test_outputs_in_every_way(den: Space) -> None:
    den.write(
        "give.py",
        LEAK
        + """
all = list(shown())
with open(os.environ["DAGRUN_OUTPUT"], "w") as file:
    json.dump({"list": all, "deep": {"key " + all[0]: [{"x": all}]}, "text": " ".join(all)}, file)
with open("given.json", "w") as file:
    json.dump(all, file)
with open("given.txt", "w") as file:
    file.write("\\n".join(all))
print(json.dumps(all))
""",
    )
    flow(
        den,
        FLOW
        + """
  give:
    ALL
    run: python3 give.py
    outputs:
      list: {}
      deep: {}
      text: {}
      doc: {from: json}
      all: {from: stdout}
      file: {from: file, file: given.json}
      lines: {from: file, file: given.txt}
  take:
    inputs: {text: nodes.give.text, list: nodes.give.list}
    run: 'printf "%s" "$INPUT_TEXT"; cat "$DAGRUN_INPUTS"'
outputs: {text: "${{ nodes.give.text }}", list: nodes.give.list}
""",
    )
    done = clean(den.execute("--json", env=HERE))
    assert done.code == 0, done.err
    assert leaks(den.log("take")) == []
    assert b"***" in den.log("take")
    assert stored(den) == []
    tell(den)


REFUSED = (
    "{o: {from: stdout, schema: {type: string, maxLength: 3}}}",
    "{o: {from: json, schema: {type: array, maxItems: 1}}}",
    "{o: {from: json, path: '.a'}}",
    "{o: {schema: {type: integer}}}",
    "{o: {schema: {const: 1}}, p: {schema: {enum: [1]}}}",
)


def test_outputs_that_are_refused(den: Space) -> None:
    den.write("give.py", LEAK + "print(json.dumps(list(shown())))\nprint(list(shown())[0], file=sys.stderr)\n")
    nodes = [
        f"""
  give{k}:
    ALL
    run: "python3 give.py; printf 'o=%s%s%s\\\\n' \\"$A\\" \\"$B\\" \\"$C\\" >> $DAGRUN_OUTPUT"
    outputs: {outputs}
"""
        for k, outputs in enumerate(REFUSED)
    ]
    flow(den, FLOW + "".join(nodes))
    done = clean(den.execute(env={**HERE, "GITHUB_ACTIONS": "true", "CI": "true"}))
    assert done.code == 1
    for k in range(len(REFUSED)):
        assert den.outcomes(f"give{k}") == ["invalid_output"]
    assert stored(den) == []
    tell(den)


MALFORMED = (
    """printf '%s\\n' "$A" "$B" "$C" > $DAGRUN_OUTPUT""",
    """printf '%s=1\\n' "$B" > $DAGRUN_OUTPUT""",
    """printf 'o<<%s\\nx\\n' "$B" > $DAGRUN_OUTPUT""",
    """printf '{"%s": 1' "$B" > $DAGRUN_OUTPUT""",
)


def test_output_files_that_are_malformed(den: Space) -> None:
    nodes = [
        f"\n  give{k}:\n    ALL\n    run: |\n      {write}\n    outputs: {{o: {{}}}}\n"
        for k, write in enumerate(MALFORMED)
    ]
    flow(den, FLOW + "".join(nodes))
    assert clean(den.execute(env=HERE)).code == 1
    for k in range(len(MALFORMED)):
        assert den.outcomes(f"give{k}") == ["invalid_output"]
    assert stored(den) == []
    tell(den)


def test_names_of_processes_and_of_files(den: Space) -> None:
    flow(
        den,
        FLOW
        + """
  stray:
    ALL
    run: 'cp /bin/sleep "./$B"; setsid "./$B" 300 & exit 0'
  files:
    ALL
    run: 'mkdir -p out; echo x > "out/$B"; echo y > out/plain'
    artifacts: [out/*]
  gone:
    ALL
    run: ["./no-such-program"]
  where:
    ALL
    run: 'echo x; kill -SEGV $$'
""",
    )
    clean(den.execute(env=HERE))
    assert stored(den) == []
    tell(den)


def test_what_is_kept_of_an_artifact(den: Space) -> None:
    den.write("make.py", LEAK + "all = ' '.join(shown())\nsys.stdout.write(all + 'x' * (1 << 20) + all)\n")
    make = "python3 make.py > big; cp big same; echo plain > small"
    flow(den, FLOW + f"\n  make: {{ALL, run: '{make}', artifacts: [big, same, small]}}\n")
    assert clean(den.execute(env=HERE)).code == 0
    assert stored(den) == []
    made = {str(a["path"]): a for a in den.finish("make").artifacts if isinstance(a, dict)}
    kept = den.path / ".dagrun" / "runs" / den.last().id / "artifacts"
    for name in ("big", "same", "small"):
        data = (kept / str(made[name]["sha"])).read_bytes()
        assert hashlib.sha256(data).hexdigest() == made[name]["sha"]
        assert len(data) == (den.path / name).stat().st_size  # the node's own file stays what it is
    assert (kept / str(made["small"]["sha"])).read_text() == "plain\n"
    assert leaks((den.path / "big").read_bytes())


def test_a_parameter_with_a_secret_in_it_is_warned_of(den: Space) -> None:
    flow(den, "params: {p: {}, q: {default: fine}}\n" + FLOW + "\n  a: {ALL, run: 'true'}\n")
    done = den.execute("-p", f"p=x{FILE}", env=HERE)
    assert done.code == 0
    (told,) = [line for line in den.run("trace", "show").out.splitlines() if "parameter" in line]
    assert "parameter `p` holds a secret" in told
    assert leaks(told.encode()) == []


def test_a_question_that_a_node_words(den: Space) -> None:
    den.write("give.py", LEAK + 'print(" ".join(shown()))\n')
    flow(
        den,
        FLOW
        + """
  give: {ALL, run: python3 give.py, outputs: {words: {from: stdout}}}
  ask:
    inputs: {words: nodes.give.words}
    review: {message: "Go on with ${{ inputs.words }}?"}
""",
    )
    assert clean(den.execute(env=HERE)).code == 4
    clean(den.run("review", env=HERE))
    assert clean(den.run("review", "ask", "--approve", "--message", "fine", "--no-resume", env=HERE)).code == 0
    assert stored(den) == []
    tell(den)


PATCHES = {
    "reason": "trigger: {type: optimization, reason: %s}\n"
    "operations: [{insert: {id: more, node: {run: 'true'}, after: [give]}}]",
    "env": "operations: [{insert: {id: more, node: {run: 'true', env: {X: %s}}, after: [give]}}]",
    "title": "operations: [{insert: {id: more, node: {run: 'true', title: %s}, after: [give]}}]",
    "run": "operations: [{insert: {id: more, node: {run: [echo, %s]}, after: [give]}}]",
    "unknown key": "operations: [{insert: {id: more, %s: 1}}]",
    "unknown node": "operations: [{remove: {id: %s, strategy: bridge}}]",
    "no yaml": "operations: [%s",
    "bad value": "operations: [{modify: {id: give, set: {timeout: %s}}}]",
}


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_patches_that_nodes_write(den: Space, patch: str) -> None:
    den.write(
        "patch.py",
        LEAK
        + f"""
text = {patch!r} % json.dumps(" ".join(shown()), ensure_ascii=False)
with open(os.environ["DAGRUN_PATCH"], "w") as file:
    file.write("workflow: flow\\nbase: 1\\n" + text)
""",
    )
    flow(den, FLOW + "\n  give: {ALL, run: python3 patch.py}\n  end: {needs: give, run: 'true'}\n")
    clean(den.execute(env=HERE))
    assert "Patch" in str(den.events())
    assert stored(den) == []
    tell(den, "replan history", "replan history --yaml", "export last", "plan last", "trace show --json")


def test_exports_reports_and_live_tables(den: Space) -> None:
    den.write("logs.py", LEAK + "for text in shown():\n    print(text)\nsys.exit(1)\n")
    flow(den, FLOW + "\n  bad: {ALL, run: python3 logs.py}\n")
    for words in (["--ui", "live"], ["--ui", "log"], ["--ui", "json"], ["--json"], ["--junit", "j.xml"]):
        assert clean(den.execute(*words, env={**HERE, "TERM": "xterm"})).code == 1
    assert leaks((den.path / "j.xml").read_bytes()) == []
    summary = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(den.path / "sum.md")}
    assert "::error" in clean(den.execute(env={**HERE, **summary})).err
    assert leaks((den.path / "sum.md").read_bytes()) == []
    assert stored(den) == []


def test_a_secret_that_can_not_be_had_says_nothing_of_the_others(den: Space) -> None:
    den.write("fail.sh", f"#!/bin/sh\necho {FILE!r}\necho 'no: {FILE}' >&2\nexit 7\n", mode=0o700)
    flow(den, FLOW.replace("[cat, command.txt]", "[./fail.sh]") + "\n  a: {ALL, run: 'true'}\n")
    done = clean(den.execute(env=HERE))
    assert done.code == 3
    assert "`./fail.sh` ended with code 7: no: ***" in done.err
    assert den.runs() == []


# ---------------------------------------------------------------- while it runs


def test_no_command_line_and_no_environment_of_others_holds_a_secret(den: Space) -> None:
    os.mkfifo(den.path / "gate")
    flow(
        den,
        FLOW
        + """
  with: {ALL, run: 'echo up >> marks; read x < gate'}
  without: {run: 'echo up >> marks; read x < gate'}
""",
    )
    process = den.start("execute", "flow.yaml", env=HERE)
    process.until(lambda: int(den.has_lines("marks", 2)), "both nodes run")
    argv, holders = [], []
    for pid in [process.pid, *procs.descendants(process.pid)]:
        argv += leaks(Path(f"/proc/{pid}/cmdline").read_bytes())
        if pid not in (process.pid, process.engine()) and leaks(Path(f"/proc/{pid}/environ").read_bytes()):
            holders.append(pid)
    logs = [b"".join(p.read_bytes() for p in den.below())]
    with open(den.path / "gate", "w") as gate:
        gate.write("go\ngo\n")
    with open(den.path / "gate", "w") as gate:
        gate.write("go\n")
    assert process.done().code == 0
    assert argv == []
    assert len(holders) == 1  # the node that names them
    assert leaks(logs[0]) == []


TALKS = """
  talk:
    ALL
    run: |
      echo up; cat secret.txt; printenv A B C | tee /dev/stderr | base64; printf %s "$B" | head -c 15
      echo up >> marks; read x < gate; echo "$C"; echo end
"""


def test_the_log_of_a_running_node_is_shown_as_far_as_it_is_masked(den: Space) -> None:
    os.mkfifo(den.path / "gate")
    flow(den, FLOW + TALKS)
    process = den.start("execute", "flow.yaml", env=HERE)
    process.until(lambda: int(den.has_lines("marks")), "the node has written")
    clean(den.run("logs", "talk", "--raw", env=HERE))
    follow = den.start("logs", "talk", "-f", env=HERE)
    told = ("logs talk", "logs talk --err", "logs talk --json", "logs talk --tail 1", "trace show --node talk")
    process.until(lambda: "*" * 10 in clean(den.run("logs", "talk")).out, "a part is masked")
    for line in told:
        done = clean(den.run(*line.split(), env=HERE))
        assert done.code == 0
    assert "*" * 10 in den.run("logs", "talk", "--err").out
    assert FILE[:8] not in clean(den.run("logs", "talk", "--tail", "1", "--out")).out  # half a secret
    assert den.run("logs", "talk").out.startswith("up\n")
    assert [p for p in den.below() if leaks(p.read_bytes())] == []
    with open(den.path / "gate", "w") as gate:
        gate.write("go\n")
    assert process.done().code == 0
    followed = clean(follow.done())
    assert followed.out.startswith("up\n")
    assert sorted(followed.out.split()) == sorted(clean(den.run("logs", "talk")).out.split())
    assert "end" in followed.out
    assert stored(den) == []
    assert [p for p in den.below() if "shown" in p.name] == []


def test_the_log_of_a_node_without_secrets_is_shown_at_once(den: Space) -> None:
    os.mkfifo(den.path / "gate")
    flow(den, "nodes:\n  talk: {run: 'echo up; printf half; echo up >> marks; read x < gate'}\n")
    process = den.start("execute", "flow.yaml")
    process.until(lambda: int(den.has_lines("marks")), "the node has written")
    assert den.run("logs", "talk", "--raw").out == "up\nhalf"
    assert [p for p in den.below() if "shown" in p.name] == []
    with open(den.path / "gate", "w") as gate:
        gate.write("go\n")
    assert process.done().code == 0


def test_the_log_of_a_node_whose_engine_was_killed_is_shown_no_further(den: Space) -> None:
    os.mkfifo(den.path / "gate")
    flow(den, FLOW + TALKS)
    process = den.start("execute", "flow.yaml", env=HERE)
    process.until(lambda: int(den.has_lines("marks")), "the node has written")
    os.kill(process.engine(), signal.SIGKILL)
    assert process.done().code == 137
    for line in ("logs talk", "logs talk -f", "logs talk --json", "trace show --node talk", "logs talk --err"):
        clean(den.run(*line.split(), env=HERE))
    (den.path / "gate").unlink()
    den.write("gate", "go\n")
    assert clean(den.run("resume", env=HERE)).code == 0
    assert stored(den) == []
    assert [p for p in den.below() if "shown" in p.name] == []
    tell(den)


@pytest.mark.parametrize(
    "node",
    [
        'run: [sh, -c, "echo started > marks", "${{ env.A }}"]',
        'inputs: {x: {value: "${{ env.A }}"}}\n    run: [sh, -c, "echo started > marks", "${{ inputs.x }}"]',
        'cwd: "${{ env.A }}"\n    run: "echo started > ../marks"',
        'env: {X: "${{ env.A }}"}\n    run: [sh, -c, "echo started > marks", "${{ env.X }}"]',
    ],
)
def test_an_expression_never_puts_a_secret_where_others_see_it(den: Space, node: str) -> None:
    flow(den, FLOW + f"\n  a:\n    ALL\n    {node}\n")
    done = clean(den.execute(env=HERE))
    assert done.code in (1, 3)
    assert den.read("marks") == ""
    assert stored(den) == []


def test_an_expression_may_put_a_secret_into_a_variable_of_its_node(den: Space) -> None:
    flow(
        den,
        FLOW + '\n  a: {ALL, env: {AUTH: "Bearer ${{ env.B }}"}, run: \'test "$AUTH" = "Bearer $B"; echo "$AUTH"\'}\n',
    )
    assert clean(den.execute(env=HERE)).code == 0
    assert stored(den) == []


def test_secret_files_are_private_exact_and_gone_afterwards(den: Space) -> None:
    den.flow("""
    secrets: {B: {file: secret.txt}, C: {command: [cat, command.txt]}}
    nodes:
      a:
        secrets: [{B: file}, C]
        run: |
          test -z "${B-}"
          stat -c '%a %U' "$B_FILE" > mode
          cp "$B_FILE" copy
          dirname "$B_FILE" > where
          cat "$B_FILE"
    """)
    assert clean(den.execute(env=HERE)).code == 0
    assert den.read("mode").split()[0] == "400"
    assert den.read("copy") == FILE + "\n"
    assert not Path(den.read("where").strip()).exists()
    assert stored(den) == []


def test_nothing_is_left_of_the_exchange(den: Space) -> None:
    """In a temporary folder of its own: that of everybody holds the exchanges of other runs."""
    temporary = den.path.parent / "temporary"
    temporary.mkdir()
    den.write("give.py", LEAK + 'print(" ".join(shown()))\n')
    tell = "env > $DAGRUN_OUTPUT; dirname $DAGRUN_OUTPUT > where"
    flow(den, FLOW + f"\n  give: {{ALL, run: '{tell}; python3 give.py', outputs: {{o: {{from: stdout}}}}}}\n")
    assert clean(den.execute(env={**HERE, "TMPDIR": str(temporary)})).code == 0
    exchange = temporary / f"dagrun-{os.getuid()}"
    assert den.read("where").startswith(f"{exchange}/{den.last().id}-")
    assert list(temporary.rglob("*")) == [exchange]


def test_a_node_that_a_person_inserts_wants_secrets_that_nobody_wanted(den: Space) -> None:
    os.mkfifo(den.path / "gate")
    den.flow("""
    secrets: {C: {command: [cat, command.txt]}, GONE: {env: NOT_THERE}}
    nodes:
      give: {run: "read x < gate"}
    """)
    den.write("more.yaml", "id: more\nnode: {run: 'printenv C', secrets: [C]}\nafter: [give]\n")
    den.write("gone.yaml", "id: gone\nnode: {run: 'printenv GONE', secrets: [GONE]}\nafter: [give]\n")
    process = den.start("execute", "flow.yaml", env=HERE)
    process.until(lambda: den.started("give"), "the first node runs")
    clean(den.run("replan", "--insert", "more.yaml", "--insert", "gone.yaml", "--yes", env=HERE))
    with open(den.path / "gate", "w") as gate:
        gate.write("go\n")
    assert clean(process.done()).code == 1
    assert den.statuses() == {"give": "completed", "more": "completed", "gone": "failed"}
    assert den.log("more") == b"*" * len(COMMAND) + b"\n"
    assert "the environment has no NOT_THERE (set it" in den.finish("gone").error
    assert stored(den) == []
    # a new engine knows before it starts anything
    done = clean(den.run("resume", env=HERE))
    assert done.code == 3
    assert "export NOT_THERE" in done.err
