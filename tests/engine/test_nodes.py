"""What a run does with its nodes: order, data, retries, conditions, limits, and what is recorded."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from dagrun.core.event import Event, NodeStarted, Warned
from dagrun.core.names import Outcome

from .space import Space

# ---------------------------------------------------------------- order and room


def at_once(space: Space) -> int:
    """The most lines `+` without their `-` in the file `busy`: how many nodes ran at a time."""
    now = most = 0
    for line in space.lines("busy"):
        now += 1 if line == "+" else -1
        most = max(most, now)
    return most


BUSY = "echo + >> busy; sleep 0.02; echo - >> busy"


@pytest.mark.parametrize("args", [(), ("-j", "2")])
def test_never_more_than_parallel_at_a_time(space: Space, args: tuple[str, ...]) -> None:
    nodes = "".join(f"  n{i}: {{run: '{BUSY}'}}\n" for i in range(20))
    space.flow(f"limits: {{parallel: 3}}\nschedule: ready\nnodes:\n{nodes}")
    assert space.execute(*args).code == 0
    assert at_once(space) == (2 if args else 3)


def test_reservations_bound_what_runs_together(space: Space) -> None:
    nodes = "".join(f"  g{i}: {{run: '{BUSY}', resources: {{gpu: 2}}}}\n" for i in range(6))
    space.flow(f"limits: {{parallel: 10, resources: {{gpu: 5}}}}\nnodes:\n{nodes}")
    assert space.execute().code == 0
    assert at_once(space) == 2


def test_more_than_there_is_is_refused_before_anything_starts(space: Space) -> None:
    space.flow("limits: {resources: {gpu: 1}}\nnodes: {a: {run: touch ran, resources: {gpu: 2}}}")
    done = space.execute()
    assert done.code in (3, 8)
    assert "gpu" in done.err
    assert not space.runs()
    assert not (space.path / "ran").exists()


def test_a_wave_waits_for_the_whole_wave_before_it(space: Space) -> None:
    space.flow("""
        limits: {parallel: 4}
        nodes:
          quick: {run: echo quick >> ran}
          slow: {run: 'sleep 0.2; echo slow >> ran'}
          next: {run: echo next >> ran, needs: quick}
    """)
    assert space.execute().code == 0
    assert space.lines("ran") == ["quick", "slow", "next"]


def test_ready_starts_what_has_its_needs(space: Space) -> None:
    space.flow("""
        schedule: ready
        nodes:
          quick: {run: 'true'}
          slow: {run: 'until test -e next; do sleep 0.01; done'}
          next: {run: touch next, needs: quick}
    """)
    assert space.execute("-j", "2").code == 0


def test_the_longest_remaining_path_goes_first(space: Space) -> None:
    space.flow("""
        schedule: ready
        nodes:
          leaf1: {run: echo leaf1 >> ran}
          leaf2: {run: echo leaf2 >> ran}
          root: {run: echo root >> ran}
          below: {run: echo below >> ran, needs: root}
    """)
    assert space.execute("-j", "1").code == 0
    assert space.lines("ran")[0] == "root"


# ---------------------------------------------------------------- failure


def test_a_failure_skips_its_dependents_and_nothing_else(space: Space) -> None:
    space.flow("""
        nodes:
          bad: {run: exit 7}
          child: {run: touch child, needs: bad}
          grandchild: {run: touch grandchild, needs: child}
          after: {run: touch after, needs: bad, if: failure()}
          always: {run: touch always, needs: child, if: always()}
          else: {run: touch else}
    """)
    assert space.execute().code == 1
    assert space.statuses() == {
        "bad": "failed",
        "child": "skipped",
        "grandchild": "skipped",
        "after": "completed",
        "always": "completed",
        "else": "completed",
    }
    finish = space.finish("bad")
    assert (finish.outcome, finish.exit_code, finish.error) == (Outcome.FAILED, 7, "exit code 7")
    assert {p.name for p in space.path.iterdir()} >= {"after", "always", "else"}
    assert not (space.path / "child").exists()


def test_continue_on_error(space: Space) -> None:
    space.flow("""
        nodes:
          bad: {run: exit 7, continue_on_error: true}
          child: {run: touch child, needs: bad}
    """)
    assert space.execute().code == 0
    assert space.statuses() == {"bad": "failed", "child": "completed"}
    assert str(space.state().status) == "completed"


def test_fail_fast_ends_what_runs_and_starts_nothing_more(space: Space) -> None:
    space.flow("""
        fail_fast: true
        schedule: ready
        nodes:
          long: {run: 'echo $$ > pid; exec sleep 100'}
          bad: {run: 'until test -s pid; do sleep 0.01; done; exit 3'}
          later: {run: touch later, needs: long}
    """)
    assert space.execute("-j", "2").code == 1
    assert space.statuses() == {"long": "cancelled", "bad": "failed", "later": "cancelled"}
    assert not (space.path / "later").exists()


def test_retries_and_what_the_node_sees_of_them(space: Space) -> None:
    space.flow("""
        nodes:
          flaky:
            run: echo "$DAGRUN_ATTEMPT $DAGRUN_IDEMPOTENCY_KEY" >> ran; test "$DAGRUN_ATTEMPT" = 3
            retry: {max_attempts: 3, delay: 1ms}
          hopeless: {run: exit 1, retry: {max_attempts: 2, delay: 1ms}}
          once: {run: exit 1}
          picky: {run: exit 1, retry: {max_attempts: 5, delay: 1ms, outcomes: [timed_out]}}
    """)
    assert space.execute().code == 1
    assert space.outcomes("flaky") == ["failed", "failed", "completed"]
    assert space.outcomes("hopeless") == ["failed", "failed"]
    assert space.outcomes("once") == space.outcomes("picky") == ["failed"]
    numbers, keys = zip(*(line.split() for line in space.lines("ran")))
    assert numbers == ("1", "2", "3")
    assert len(set(keys)) == 1


def test_a_retry_waits_its_delay(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: 'exit 1', retry: {max_attempts: 2, delay: 300ms, jitter: 0}}
    """)
    assert space.execute().code == 1
    attempts = space.state().attempts[0]
    assert attempts[1].started_m - attempts[0].started_m >= 0.3


@pytest.mark.parametrize("reason", ["resource", "drain"])
def test_a_retry_that_is_due_but_may_not_start_costs_nothing(space: Space, reason: str) -> None:
    """Waiting is waiting: no turn of the loop after the other until there is room again."""
    gpu = ", resources: {gpu: 1}" if reason == "resource" else ""
    space.flow(f"""
        limits: {{resources: {{gpu: 1}}, parallel: 2}}
        schedule: ready
        nodes:
          holder: {{run: 'touch held; until test -e go; do sleep 0.05; done', needs: first{gpu}}}
          first: {{run: 'true'}}
          again: {{run: 'test -e held', retry: {{max_attempts: 9, delay: 50ms, backoff: 1, jitter: 0}}{gpu}}}
    """)
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.started("holder"), "the holder runs")
    engine = process.engine()
    if reason == "drain":
        process.signal(signal.SIGINT)
        process.until(lambda: space.state().stop is not None, "the stop is journaled")
    before = _cpu_ms(engine)
    # half a second in which nothing can happen
    assert not select.select([process.pidfd], [], [], 0.6)[0]
    spent = _cpu_ms(engine) - before
    space.write("go", "")
    assert process.done().code == (0 if reason == "resource" else 130)
    assert spent < 150, f"{spent} ms of cpu in 600 ms of waiting"


def _cpu_ms(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 // os.sysconf("SC_CLK_TCK")


def test_a_timeout_ends_the_whole_tree(space: Space) -> None:
    space.flow("""
        nodes:
          slow: {run: 'sleep 100 & sleep 100', timeout: 100ms}
    """)
    assert space.execute().code == 1
    finish = space.finish("slow")
    assert finish.outcome is Outcome.TIMED_OUT
    assert "timed out after 0.1s" in finish.error


def test_a_timeout_without_idempotence_is_not_tried_again(space: Space) -> None:
    space.flow("""
        nodes:
          pay: {run: sleep 100, timeout: 50ms, idempotent: false, retry: {max_attempts: 3, delay: 1ms}}
    """)
    assert space.execute().code == 1
    assert space.outcomes("pay") == ["timed_out"]


def test_a_node_killed_by_a_signal_and_a_missing_program(space: Space) -> None:
    space.flow("""
        nodes:
          killed: {run: 'kill -9 $$'}
          missing: {run: [no-such-program]}
          text: {run: [./text]}
          nowhere: {run: pwd, cwd: not/there}
    """)
    space.write("text", "not a program")
    assert space.execute().code == 1
    assert space.finish("killed").error == "killed by signal 9 (SIGKILL)"
    assert (space.finish("missing").exit_code, space.finish("text").exit_code) == (127, 126)
    assert "command not found" in space.finish("missing").error
    assert "not/there" in space.finish("nowhere").error


def test_injected_failures(space: Space) -> None:
    space.flow("nodes: {a: {run: touch ran, retry: {max_attempts: 2, delay: 1ms}}, b: {run: 'true'}}")
    assert space.execute("--fail", "a:timed_out:1", "--fail", "b").code == 1
    assert space.outcomes("a") == ["timed_out", "completed"]
    assert "injected" in space.finish("b").error


# ---------------------------------------------------------------- data


def test_a_node_reads_what_it_declared_and_nothing_else(space: Space) -> None:
    space.flow("""
        params: {who: {default: world}}
        nodes:
          a:
            run: |
              echo 'x=1' >> "$DAGRUN_OUTPUT"
              printf 'two<<END\\nline 1\\nline 2\\nEND\\n' >> "$DAGRUN_OUTPUT"
              echo '{"deep": {"list": [10, 20]}}'
            outputs:
              x: {}
              two: {}
              second: {from: json, path: '.deep.list[1]'}
              all: {from: stdout}
          b:
            inputs: {x: nodes.a.x, n: nodes.a.second, who: params.who, lit: {value: [1, 'is ${{ params.who }}']}}
            env: {GREETING: 'hi ${{ inputs.who }}'}
            run: |
              env | sort | grep -E '^(INPUT_|GREETING)'
              cat "$DAGRUN_INPUTS" >> seen
            outputs: {seen: {from: stdout}}
          c: {needs: [a], run: 'env | grep ^INPUT_ || true', outputs: {seen: {from: stdout}}}
        outputs: {greeting: nodes.b.seen, both: '${{ nodes.a.x }}-${{ nodes.a.second }}'}
    """)
    done = space.execute("-p", "who=moon", "--json")
    assert done.code == 0, done
    result = json.loads(done.out)
    assert result["outputs"]["greeting"].split("\n") == [
        "GREETING=hi moon",
        'INPUT_LIT=[1,"is moon"]',
        "INPUT_N=20",
        "INPUT_WHO=moon",
        "INPUT_X=1",
    ]
    assert result["outputs"]["both"] == "1-20"
    assert json.loads(space.read("seen")) == {"x": "1", "n": 20, "who": "moon", "lit": [1, "is moon"]}
    assert space.state().outputs[space.state().plan.index["c"]] == {"seen": {"v": ""}}


def test_a_large_value_goes_by_file_not_by_environment_or_journal(space: Space) -> None:
    space.flow(f"""
        nodes:
          a: {{run: [{sys.executable}, -c, "print('x' * 3_000_000, end='')"], outputs: {{t: {{from: stdout}}}}}}
          b:
            inputs: {{t: nodes.a.t}}
            run: 'test -z "${{INPUT_T+set}}"; wc -c < "$DAGRUN_INPUTS" > size'
    """)
    assert space.execute().code == 0
    assert int(space.read("size")) == 3_000_000 + len('{"t":""}') + 1
    assert Path(space.last().journal).stat().st_size < 5_000


@pytest.mark.parametrize(
    ("run", "output", "why"),
    [
        ("echo nonsense >> $DAGRUN_OUTPUT", "{}", "line 1: 'nonsense' is neither"),
        ("printf 'x<<END\\n1\\n' >> $DAGRUN_OUTPUT", "{}", "never closed"),
        ("printf 'x=\\377' >> $DAGRUN_OUTPUT", "{}", "not UTF-8"),
        ("mkfifo $DAGRUN_OUTPUT", "{}", "named pipe"),
        ("ln -s /etc/hostname $DAGRUN_OUTPUT", "{}", "symbolic link"),
        ("mkdir $DAGRUN_OUTPUT", "{}", "a folder"),
        ("echo '[1]' > $DAGRUN_OUTPUT", "{}", "line 1"),
        ("truncate -s 17M $DAGRUN_OUTPUT", "{}", "too large"),
        ("true", "{}", "was not written"),
        ("echo '{\"x\": 1'", "{from: json}", "line 2, column 1"),
        ("true", "{from: json}", "empty"),
        ("echo NaN", "{from: json}", "not a JSON number"),
        ("echo '{}'", "{from: json, path: .a}", "a"),
        ("true", "{from: file, file: none.txt}", "no file"),
        ("printf '\\200'", "{from: stdout}", "not UTF-8"),
        ("echo '\"a\"'", "{from: json, schema: {type: integer}}", "is not of type 'integer'"),
    ],
)
def test_a_bad_output_is_a_failure_of_the_node_that_says_why(space: Space, run: str, output: str, why: str) -> None:
    space.flow(f"nodes:\n  a:\n    run: |\n      {run}\n    outputs: {{x: {output}}}\n  b: {{run: 'true', needs: a}}\n")
    done = space.execute()
    assert done.code == 1, done
    assert space.outcomes("a") == ["invalid_output"]
    assert why in space.finish("a").error
    assert space.statuses()["b"] == "skipped"
    assert "Traceback" not in done.err


@pytest.mark.parametrize("depth", [150, 900, 100_000])
def test_json_that_is_nested_too_deep_is_a_bad_output_and_leaves_a_readable_journal(space: Space, depth: int) -> None:
    space.flow(f"""
        secrets: {{S: {{env: CANARY}}}}
        nodes:
          a:
            run: [{sys.executable}, -c, "print('[' * {depth} + ']' * {depth})"]
            outputs: {{x: {{from: json}}}}
          b: {{inputs: {{x: {{from: nodes.a.x, optional: true}}}}, run: 'true', if: always()}}
    """)
    done = space.execute(env={"CANARY": "tweet-tweet"})
    assert done.code == 1, done
    assert "nested too deep" in space.finish("a").error
    assert space.statuses() == {"a": "failed", "b": "completed"}


def test_an_output_schema(space: Space) -> None:
    space.write("good.json", '{"type": "object", "required": ["n"], "properties": {"n": {"type": "string"}}}')
    space.flow("""
        nodes:
          good: {run: 'echo n=1 >> "$DAGRUN_OUTPUT"', output_schema: good.json}
          bad: {run: 'echo m=1 >> "$DAGRUN_OUTPUT"', output_schema: good.json}
          uses: {run: 'echo "$INPUT_N" > n', inputs: {n: nodes.good.n}}
    """)
    assert space.execute().code == 1
    assert space.read("n") == "1\n"
    assert space.outcomes("bad") == ["invalid_output"]
    assert "'n' is a required property" in space.finish("bad").error


def test_artifacts_are_kept_as_they_were(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: 'mkdir -p out/sub; echo 1 > out/x.txt; echo 2 > out/sub/y.txt', artifacts: [out/**/*.txt]}
          b: {run: 'rm -r out', needs: a}
          c: {run: 'true', artifacts: [not-there]}
          d: {run: 'ln -s /etc/passwd link', artifacts: [link]}
    """)
    assert space.execute().code == 1
    kept = {a["path"]: a["sha"] for a in space.finish("a").artifacts}  # type: ignore[index, call-overload]
    assert kept.keys() == {"out/x.txt", "out/sub/y.txt"}
    assert (Path(space.last().artifacts) / str(kept["out/x.txt"])).read_text() == "1\n"
    assert space.outcomes("c") == space.outcomes("d") == ["invalid_output"]


def test_a_missing_input_fails_the_node_before_it_starts(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: 'true', outputs: {x: {from: json}}, continue_on_error: true}
          b: {run: touch b, inputs: {x: nodes.a.x}}
          c: {run: 'echo "$INPUT_X" > c', inputs: {x: {from: nodes.a.x, default: none}}}
    """)
    assert space.execute().code == 1
    assert "could not start" in space.finish("b").error
    assert not (space.path / "b").exists()
    assert space.read("c") == "none\n"


@pytest.mark.parametrize("make", ["mkfifo thing", "mkdir thing", "ln -s nowhere thing"])
def test_hash_files_of_what_is_no_file_fails_the_node_and_never_waits(space: Space, make: str) -> None:
    space.flow(f"""
        nodes:
          a: {{run: '{make}'}}
          b: {{run: echo $H, env: {{H: "${{{{ hashFiles('thing') }}}}"}}, needs: a}}
    """)
    assert space.execute().code == 1
    assert space.statuses() == {"a": "completed", "b": "failed"}
    assert "thing" in space.finish("b").error


def test_conditions(space: Space) -> None:
    space.flow("""
        params: {deploy: {type: boolean, default: false}}
        nodes:
          a: {run: 'true'}
          no: {run: touch no, if: params.deploy, needs: a}
          yes: {run: touch yes, if: "!params.deploy", needs: a}
          after: {run: touch after, needs: no}
          status: {run: touch status, needs: no, if: "always() && nodes.no.status == 'skipped'"}
    """)
    assert space.execute().code == 0
    assert space.statuses() == {
        "a": "completed",
        "no": "skipped",
        "yes": "completed",
        "after": "skipped",
        "status": "completed",
    }


def test_chosen_nodes_with_the_outputs_of_another_run(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: 'echo a >> ran; echo 1', outputs: {x: {from: stdout}}}
          b: {run: 'echo "b$INPUT_X" >> ran', inputs: {x: nodes.a.x}}
          c: {run: echo c >> ran, needs: b}
    """)
    assert space.execute("--only", "b").code == 3
    assert not space.runs()
    assert space.execute("--until", "a").code == 0
    assert space.execute("--from", "b", "--outputs-of", "last").code == 0
    assert space.lines("ran") == ["a", "b1", "c"]


# ---------------------------------------------------------------- output


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(256)) * 8,
        b"\x1b[2J\x1b]0;owned\x07\x1b[31mred\x1b[0m\n",
        b"[bold red]markup[/] [link=http://x]y[/link] [/nothing]\n",
        b"10%\r20%\r100%\n",
        b"\xff\xfe no newline at the end",
        b"::error::x\n::add-mask::y\n",
    ],
)
def test_logs_are_exact_and_the_screen_is_safe(space: Space, data: bytes) -> None:
    (space.path / "data").write_bytes(data)
    space.flow("nodes: {a: {run: 'cat data; cat data >&2; exit 1'}}")
    done = space.execute()
    assert done.code == 1
    assert space.log("a") == data
    assert space.log("a", stream="err") == data
    for text in (done.out, done.err):
        assert "\x1b" not in text
        assert "\0" not in text
    assert space.finish("a").stdout_bytes == len(data)


def test_more_output_than_the_limit_ends_the_node(space: Space) -> None:
    space.flow("nodes: {a: {run: 'yes', resources: {output: 1M}}, b: {run: 'true', needs: a, if: failure()}}")
    assert space.execute().code == 1
    finish = space.finish("a")
    assert (finish.outcome, finish.limit) == (Outcome.OVER_LIMIT, "output")
    assert "more than its limit of 1000000" in finish.error or "more than its limit of 1048576" in finish.error
    assert space.statuses()["b"] == "completed"


@pytest.mark.slow
def test_a_gigabyte_of_output_ends_the_node_at_256_mb(space: Space) -> None:
    space.flow("nodes: {a: {run: 'yes | head -c 1073741824; sleep 100'}}")
    process = space.start("execute", "flow.yaml")
    done = process.done(60)
    assert done.code == 1
    finish = space.finish("a")
    assert (finish.outcome, finish.limit) == (Outcome.OVER_LIMIT, "output")
    assert finish.stdout_bytes > 256 << 20


def test_a_node_that_closes_its_streams_and_one_that_reads_stdin(space: Space) -> None:
    space.flow("""
        nodes:
          quiet: {run: 'exec >&- 2>&-; sleep 0.05; echo x; touch quiet; exit 0', shell: bash}
          stdin: {run: 'cat; touch stdin'}
    """)
    assert space.execute().code == 1  # bash: the echo into a closed stream fails under -e
    assert space.finish("quiet").exit_code == 1
    assert space.statuses()["stdin"] == "completed"


def test_a_background_child_that_holds_stdout_does_not_hold_the_node(space: Space) -> None:
    asleep = "sleep 100 & until grep -q sleep /proc/$!/comm; do :; done"  # until then it is a shell too
    space.flow(f"nodes: {{a: {{run: '{asleep}; echo done'}}, b: {{run: 'true', needs: a}}}}")
    assert space.execute().code == 0
    warned = [e for e in space.events() if isinstance(e, Warned)]
    assert warned
    assert "sleep" in warned[0].text


# ---------------------------------------------------------------- secrets

CANARY = "c4n4ry-\u00fc$&'\"-0123456789"
TOKEN = "t0k3n-4nd-as-long-as-tokens-are-today-0123456789"


def test_a_secret_is_nowhere(space: Space) -> None:
    """Given to who names it, and found in no file and no stream afterwards, in no form."""
    space.write("secret.txt", CANARY + "\n")
    space.flow("""
        secrets: {KEY: {env: THE_KEY}, FILE: {file: secret.txt}, CMD: {command: [cat, secret.txt]}, TOKEN: {env: TOKEN}}
        nodes:
          shout:
            secrets: [KEY]
            run: |
              echo "$KEY"; echo "$KEY" >&2; echo "key=$KEY" >> "$DAGRUN_OUTPUT"
              printf %s "$KEY" | base64 -w0; echo; printf 'x%s' "$KEY" | base64 -w0
            outputs: {key: {}, all: {from: stdout}}
          uses: {run: 'echo "$INPUT_KEY"; env', inputs: {key: nodes.shout.key}}
          fails: {secrets: [FILE], run: 'echo "$FILE" >&2; echo "$FILE=" >> "$DAGRUN_OUTPUT"', outputs: {x: {}}}
          exec: {secrets: [CMD], run: 'exec "/bin/no/$CMD"'}
          long: {secrets: [KEY], run: 'printf "%0190d%s" 0 "$KEY"; exit 1'}
          cut: {secrets: [TOKEN], run: 'echo "a long line $TOKEN" > "$DAGRUN_OUTPUT"', outputs: {x: {}}}
          schema:
            secrets: [TOKEN]
            run: printf '"%0180d%s"' 0 "$TOKEN"
            outputs: {x: {from: json, schema: {type: integer}}}
        outputs: {key: nodes.shout.key}
    """)
    done = space.execute(env={"THE_KEY": CANARY, "TOKEN": TOKEN})
    assert done.code == 1
    assert "is not of type 'integer'" in space.finish("schema").error
    assert "is neither name=value" in space.finish("cut").error
    assert space.statuses()["uses"] == "completed"
    (space.path / "secret.txt").unlink()
    forms = [CANARY, json.dumps(CANARY)[1:-1], CANARY[:9], TOKEN[:9]]
    for name, text in [("stdout", done.out), ("stderr", done.err), *((p.name, _text(p)) for p in space.below())]:
        for form in forms:
            assert form not in text, f"{form} in {name}"


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def test_a_secret_in_the_log_of_a_lost_attempt_is_masked_by_the_resume(space: Space) -> None:
    space.flow("""
        secrets: {KEY: {env: THE_KEY}}
        nodes: {a: {secrets: [KEY], run: 'echo "$KEY"; test -e go || { echo x >> up; sleep 100; }'}}
    """)
    process = space.start("execute", "flow.yaml", env={"THE_KEY": CANARY})
    process.until(lambda: space.has_lines("up"), "the node wrote its secret")
    os.kill(process.engine(), signal.SIGKILL)
    assert process.done().code == 137
    space.write("go", "")
    assert space.run("resume", env={"THE_KEY": CANARY}).code == 0
    assert space.outcomes("a") == ["lost", "completed"]
    assert not [p for p in space.below() if CANARY in _text(p)]


def test_a_secret_that_can_not_be_had_stops_before_the_run(space: Space) -> None:
    space.flow("""
        secrets: {A: {env: NOT_SET}, B: {file: none}, C: {command: ['false']}}
        nodes: {a: {run: 'true', secrets: [A, B, C]}}
    """)
    done = space.execute()
    assert done.code == 3
    assert all(f"`{name}`" in done.err for name in "ABC")
    assert not space.runs()


def test_an_undeclared_secret_and_keys_stay_out_of_a_node(space: Space) -> None:
    space.flow("""
        secrets: {KEY: {env: MINE}}
        nodes: {a: {run: 'env > seen'}}
    """)
    assert space.execute(env={"MINE": "m1m1m1", "OPENAI_API_KEY": "k2k2k2", "PLAIN": "p3p3p3"}).code == 0
    seen = space.read("seen")
    assert "p3p3p3" in seen
    assert "m1m1m1" not in seen
    assert "k2k2k2" not in seen


# ---------------------------------------------------------------- the journal


def starts(events: list[Event]) -> list[str]:
    return [e.node for e in events if isinstance(e, NodeStarted)]


def test_nothing_starts_before_its_start_and_the_end_of_its_needs_are_journaled(space: Space) -> None:
    """The journal is read by the node itself: its own start is in it, and the ends of its needs."""
    space.flow("""
        durability: strict
        nodes:
          a: {run: 'true'}
          b: {run: 'cp "$DAGRUN_RUN_DIR/journal.jsonl" copy', needs: a}
    """)
    assert space.execute().code == 0
    seen = space.read("copy")
    assert '"type":"attempt.finished","node":"a"' in seen
    assert '"type":"node.started","node":"b"' in seen


def test_a_hundred_nodes_in_any_order(space: Space) -> None:
    nodes = "".join(
        f"  n{i}: {{run: 'true', needs: [{', '.join(f'n{j}' for j in range(max(0, i - 3), i))}]}}\n" for i in range(100)
    )
    space.flow(f"schedule: ready\nnodes:\n{nodes}")
    assert space.execute().code == 0
    assert starts(space.events()) == [f"n{i}" for i in range(100)]


@pytest.mark.parametrize(
    "schema",
    ['{"$ref": "#"}', '{"pattern": "("}', '{"type": 5}', '{"minimum": "a"}', '{"$ref": "http://example.org/x"}', "5"],
)
def test_a_schema_that_is_none_is_no_bug(space: Space, schema: str) -> None:
    space.write("bad.json", schema)
    space.flow("""
        nodes:
          a: {run: [echo, '"x"'], outputs: {x: {from: json, schema: bad.json}}}
    """)
    done = space.execute()
    assert done.code in (1, 3), done
    assert "schema" in (done.err if done.code == 3 else space.finish("a").error)
