"""What an error means, without a network: the facts of the wire first, the library's names second."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from dagrun.agent.broker_errors import MAX_MESSAGE, clean, failure, retry_after, without_end
from dagrun.agent.broker_wire import Wire
from dagrun.core.mask import Masker

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
MASK = Masker(("sk-0123456789",))


class RateLimitError(Exception):
    """A name that is known."""


class BadRequestError(Exception):
    """Another."""


class ContextWindowExceededError(BadRequestError):
    """A third."""


class InternalServerError(Exception):
    """What a missing key is dressed up as, among others."""


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("12", 12.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("", None),
        ("soon", None),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 13:00:30 +0100", 30.0),
        ("Thu, 32 Jan 2026 12:00:30 GMT", None),
    ],
)
def test_when_to_come_again(said: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": said}, NOW) == seconds


def test_milliseconds_come_first() -> None:
    assert retry_after({"retry-after": "2", "retry-after-ms": "1500"}, NOW) == 1.5
    assert retry_after({"retry-after": "2", "retry-after-ms": "x"}, NOW) == 2
    found = retry_after({"x-ms-retry-after-ms": "250"}, NOW)
    assert found is not None
    assert math.isclose(found, 0.25)


def sent(status: int | None = None, reached: bool = True, **headers: str) -> Wire:
    wire = Wire(sent=["POST http://x/"], status=status, reached=reached)
    wire.headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return wire


@pytest.mark.parametrize(
    ("wire", "error", "kind"),
    [
        (Wire(), InternalServerError("The api_key client option must be set"), "auth"),
        (Wire(), InternalServerError("something"), "bad_request"),
        (Wire(), ContextWindowExceededError("too long"), "context_too_long"),
        (sent(reached=False), InternalServerError("Connection error."), "overloaded"),
        (sent(), InternalServerError("Connection error."), "cut"),
        (sent(), TimeoutError("slow"), "timeout"),
        (sent(reached=False), TimeoutError("no connection"), "overloaded"),
        (sent(200), RateLimitError("slow down"), "rate_limit"),
        (sent(200), BadRequestError("no"), "bad_request"),
        (sent(200), InternalServerError("overloaded_error"), "overloaded"),
        (sent(200), Exception("whatever"), "overloaded"),
        (sent(429), BadRequestError("misnamed"), "rate_limit"),
        (sent(503), RateLimitError("misnamed"), "overloaded"),
        (sent(599), Exception("x"), "overloaded"),
        (sent(418), Exception("x"), "bad_request"),
        (sent(400), ContextWindowExceededError("x"), "context_too_long"),
        (sent(400), Exception("prompt is too long: 210000 tokens > 200000 maximum"), "context_too_long"),
        (sent(400), Exception("Your credit balance is too low"), "bad_request"),
    ],
)
def test_the_wire_is_believed_first(wire: Wire, error: Exception, kind: str) -> None:
    assert failure(wire, error, "", MASK).kind == kind


def test_what_came_before_makes_it_a_cut_whatever_the_error_is_called() -> None:
    failed = failure(sent(200), RateLimitError("slow down"), "so far sk-0123456789", MASK)
    assert (failed.kind, failed.status, failed.partial) == ("cut", None, "so far ***")


def test_a_cause_deep_below_counts() -> None:
    class ReadError(Exception):
        pass

    error = InternalServerError("Connection error.")
    error.__context__ = Exception("between")
    error.__context__.__cause__ = ReadError("payload is not completed")
    assert failure(sent(200), error, "", MASK).kind == "cut"


def test_the_library_s_own_words_are_taken_off() -> None:
    error = Exception("litellm.RateLimitError: RateLimitError: OpenAIException - slow down, sk-0123456789")
    failed = failure(sent(429, retry_after="9"), error, "", MASK)
    assert (failed.message, failed.retry_after_s) == ("status 429: slow down, ***", 9.0)


def test_a_text_for_people_is_one_short_line() -> None:
    assert clean("a\n  b\tc ", MASK) == "a b c"
    assert len(clean("x" * 5000, MASK)) == MAX_MESSAGE
    # a key that would be cut in two is masked before
    assert "sk-0123" not in clean("x" * (MAX_MESSAGE - 8) + "sk-0123456789", MASK)


@pytest.mark.parametrize(
    ("kind", "partial", "found"),
    [("text/html", "", "bad_request"), ("text/html", "some", "cut"), ("application/json", "", "cut"), ("", "", "cut")],
)
def test_an_answer_without_an_end(kind: str, partial: str, found: str) -> None:
    assert without_end(sent(200, content_type=f"{kind}; charset=utf-8"), partial, MASK).kind == found


def lost(why: Exception) -> Wire:
    """A call that found no connection."""
    wire = sent(reached=False)
    wire.sent = ["POST http://127.0.0.1:8000/v1/chat/completions"]
    wire.error = why
    return wire


@pytest.mark.parametrize(
    ("wire", "error", "message"),
    [
        (
            lost(ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 8000)")),
            InternalServerError("Connection error."),
            "no connection to 127.0.0.1:8000: connection refused",
        ),
        (
            lost(OSError(-2, "Name or service not known")),
            InternalServerError("Connection error."),
            "no connection to 127.0.0.1:8000: name or service not known",
        ),
        (lost(Exception("what")), InternalServerError("Connection error."), "no connection to 127.0.0.1:8000"),
        (sent(), InternalServerError("Connection error."), "the connection ended without an answer"),
        (
            sent(200),
            type("ReadError", (Exception,), {})("Response payload is not completed: <TransferEncodingError: 400>"),
            "the answer broke off",
        ),
        (
            Wire(),
            BadRequestError(
                "litellm.BadRequestError: LLM Provider NOT provided. Pass in the LLM provider you are trying to call. "
                "You passed model=fake/m\n Pass model as E.g. For 'Huggingface' … https://docs.litellm.ai/docs/providers"
            ),
            "the call was not sent: there is no vendor `fake`",
        ),
    ],
)
def test_a_message_says_what_a_person_can_act_on(wire: Wire, error: Exception, message: str) -> None:
    assert failure(wire, error, "", MASK).message == message


def test_no_secure_connection_and_why() -> None:
    wire = lost(Exception("(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed (_ssl.c:1)')"))
    wire.insecure = True
    found = failure(wire, InternalServerError("Connection error."), "", MASK).message
    assert found == "no secure connection to 127.0.0.1:8000: certificate verify failed: self-signed"


def test_where_an_endpoint_sends_calls_to() -> None:
    wire = sent(307, location="http://10.0.0.1/v1/chat?token=x")
    wire.redirected = True
    found = failure(wire, InternalServerError("Connection error."), "", MASK)
    assert found.kind == "bad_request"
    assert found.message.endswith("(status 307): give its final address: http://10.0.0.1/v1/chat")
