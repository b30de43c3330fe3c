"""JUnit XML: valid whatever nodes print."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.names import Outcome, Schedule
from dagrun.view.report import junit_xml

from .agents_story import research
from .story import Story, node, release_notes


def test_a_run() -> None:
    root = ElementTree.fromstring(junit_xml(release_notes().finish().state, read=lambda i: b"out\n"))
    suite = root[0]
    wanted = {"tests": "10", "failures": "1", "errors": "0", "skipped": "3", "time": "103.000"}
    assert {k: suite.attrib[k] for k in wanted} == wanted
    cases = {case.attrib["name"]: case for case in suite.iter("testcase")}
    assert [child.tag for child in cases["lint-docs"]] == ["failure", "rerunFailure", "rerunFailure", "system-out"]
    assert cases["lint-docs"][0].attrib == {"message": "exit 2", "type": "failed"}
    assert [child.tag for child in cases["summarise-prs"]] == ["flakyFailure", "system-out"]
    assert [child.tag for child in cases["fetch-deps"]] == ["system-out"]
    assert cases["assemble"][0].attrib == {"message": "dependency: lint-docs failed"}
    assert cases["fetch-deps"].attrib["time"] == "40.000"


def test_what_may_fail_is_skipped_and_what_was_lost_is_an_error() -> None:
    story = Story([node("a", continue_on_error=True), node("b", idempotent=False)], schedule=Schedule.READY)
    story.start("a", "b").end("a", Outcome.FAILED, exit_code=1).end("b", Outcome.LOST)
    suite = ElementTree.fromstring(junit_xml(story.finish().state))[0]
    assert (suite.attrib["failures"], suite.attrib["errors"], suite.attrib["skipped"]) == ("0", "1", "1")
    tags = {case.attrib["name"]: case[0].tag for case in suite.iter("testcase")}
    assert tags == {"a": "skipped", "b": "error"}


@given(st.binary(max_size=200), st.text(max_size=50))
def test_any_bytes_and_texts_make_valid_xml(data: bytes, text: str) -> None:
    story = Story([node("a")]).start("a").end("a", Outcome.FAILED, error=text, summary=text)
    xml = junit_xml(story.state, read=lambda i: data + b"\x00\x1b[31m]]><!--\xff")
    root = ElementTree.fromstring(xml.encode("utf-8"))
    assert len(root[0].findall("testcase")) == 1


def test_only_the_tail_of_the_output_is_kept() -> None:
    story = Story([node("a")]).start("a").end("a")
    assert len(junit_xml(story.state, read=lambda i: b"x" * 1_000_000)) < 70_000


def test_what_agents_used_are_properties_of_the_suite() -> None:
    suite = ElementTree.fromstring(junit_xml(research().state))[0]
    found = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert (found["input_tokens"], found["output_tokens"], found["cost_usd"]) == ("3000", "600", "0.006000000")
    plain = ElementTree.fromstring(junit_xml(release_notes().state))[0]
    assert "cost_usd" not in {p.attrib["name"] for p in plain.iter("property")}
