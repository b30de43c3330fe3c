"""Model calls of agents: who is asked, what is held for it, what became of it, and who is asked next.

A call leaves when the record that holds its money is written (and on disk, where it costs any). Who is short
waits while other calls hold some of what is missing. Knows no tool and no process.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import TypeAlias

from dagrun.agent.loop import step
from dagrun.agent.messages import (
    Answer,
    CallFailed,
    ErrorKind,
    Reply,
    Request,
    answer_from_json,
    answer_to_json,
)
from dagrun.agent.prices import classes_of
from dagrun.agent.ratelimits import RateLimits
from dagrun.agent.record import delta
from dagrun.agent.router import Ask, Choice, Failure, GaveUp, OverBudget, choose
from dagrun.agent.steps import Answered, CallModel, MoneyShort
from dagrun.core.budget import WARN_PERCENT, prompt_bound
from dagrun.core.event import CallEnded, CallReserved, Event, Warned
from dagrun.core.lattice import dollars
from dagrun.core.names import Outcome
from dagrun.core.spending import Scopes, books, scopes_of
from dagrun.core.state import RunState
from dagrun.engine import providers
from dagrun.engine.bench import Workbench
from dagrun.engine.closing import closing, scope_text, usage_counts
from dagrun.engine.providers import Asked, Source
from dagrun.engine.talk import Asking, Talk, left_s, log_failure, log_reply, log_results, reasons_json
from dagrun.engine.timers import Timers
from dagrun.engine.watching import Watch

CALL_SHARE = 0.6  # of what is left of an attempt's time, so that a call that hangs leaves some for another
ESTIMATED_BYTES = 2  # a token of an estimate: most texts have three or more bytes in one
Fold: TypeAlias = Callable[[Event], None]


class Caller:
    """The calls of one engine. `must_sync`: something that may cost money waits for `flush`."""

    def __init__(
        self, *, state: RunState, bench: Workbench, source: Source, timers: Timers, poll: select.epoll
    ) -> None:
        self.must_sync = False
        self._state = state
        self._bench = bench
        self._source = source
        self._timers = timers
        self._keys: dict[int, Talk] = {}
        self._key = 0
        self._outbox: list[tuple[Talk, Asked, Request]] = []
        self._short: dict[int, None] = {}  # the nodes that wait for money
        self._freed = False
        self._watch = Watch(poll)
        self._classes = classes_of(state.plan.workflow.provider.classes)
        self._limits = RateLimits(self._classes)
        self._warned: set[str] = set()

    # ------------------------------------------------------------ what came

    def collect(self, now: float, fold: Fold) -> list[int]:
        """Take in what came; the nodes that can go on. Raises ReplayMiss and EnvironmentFault."""
        found: list[int] = []
        for news in self._source.collect(now):
            talk = self._keys.get(news.key)
            if talk is None or talk.key != news.key:
                continue
            if isinstance(news, providers.Said):
                talk.said = news.text
                continue
            del self._keys[news.key]
            talk.key = 0
            self._answered(talk, news.answer, now, fold)
            found.append(talk.node)
        return found

    def freed(self) -> list[int]:
        """The nodes that wait for money, if some was freed since."""
        if not self._freed:
            return []
        self._freed = False
        found, self._short = list(self._short), {}
        return found

    def _answered(self, talk: Talk, answer: Answer, now: float, fold: Fold) -> None:
        """Settle, then go on, try again, or try another model."""
        asking = talk.asking
        assert asking is not None
        assert asking.choice is not None
        assert asking.request is not None
        if self._bench.mask:
            answer = answer_from_json(self._bench.mask.value(answer_to_json(answer)))  # type: ignore[arg-type]
        answer = self._settle(talk, asking, asking.choice, answer, now, fold)
        talk.waits = ""
        if isinstance(answer, Reply):
            talk.asking = None
            before = talk.state
            talk.state = step(talk.begin.task, before, self._event(talk, answer, asking.request.max_tokens, now))
            log_results(talk, before)
            return
        log_failure(talk, asking.choice.model, answer)
        model, after_s = asking.choice.model, answer.retry_after_s
        asking.failures.append(Failure(model=model, kind=answer.kind, retry_after_s=after_s, waited_s=asking.waited_s))
        asking.last, asking.waited_s = answer, 0.0

    def _event(self, talk: Talk, answer: Answer, max_tokens: int | None, now: float) -> Answered:
        return Answered(answer, max_tokens, talk.at_s(now))

    def _settle(self, talk: Talk, asking: Asking, choice: Choice, answer: Answer, now: float, fold: Fold) -> Answer:
        """Journal what became of a call; the answer, or that it cost more than it could."""
        price = next(p for p in talk.begin.prices if p.model == choice.model)
        if isinstance(answer, CallFailed):
            self._limits.failed(price, answer, _caller(talk, asking), asking.sent_m, now)
        else:
            self._limits.replied(price.model, asking.sent_m)
        ended, spent = closing(talk, self._state.plan.ids[talk.node], answer, price, choice)
        duration_ms = answer.duration_ms if isinstance(answer, Reply) and answer.duration_ms else 0
        ended = replace(
            ended,
            answer=self._bench.context.put(answer_to_json(answer)),
            duration_ms=duration_ms or round((now - asking.sent_m) * 1000),
        )
        fold(ended)
        self._money_moved(ended.node, fold)
        if isinstance(answer, Reply):
            log_reply(talk, answer, spent, reused="")
        if spent > choice.reserve and self._state.plan.workflow.provider.budget == "strict":
            text = f"it cost {dollars(spent)}, more than the {dollars(choice.reserve)} that it could cost"
            fold(Warned(node=ended.node, text=f"{choice.model}: {text}: nothing more is spent in this run"))
            said = answer.text if isinstance(answer, Reply) else ""
            return CallFailed(kind="unbounded", message=text, partial=said)
        return answer

    def _money_moved(self, node: str, fold: Fold) -> None:
        """Some money is free again, or spent: a scope near its cap is worth a word, once."""
        self._freed = True
        ledger = books(self._state)
        for scope in scopes_of(self._state, node):
            cap = ledger.cap(scope)
            if cap and scope not in self._warned and ledger.spent(scope) * 100 >= cap * WARN_PERCENT:
                self._warned.add(scope)
                text = f"{dollars(ledger.spent(scope))} of the {dollars(cap)} of {scope_text(scope)} are spent"
                fold(Warned(text=text, node=scope.removeprefix("node:") if scope.startswith("node:") else ""))

    # ------------------------------------------------------------ what is due

    def call(self, talk: Talk, due: CallModel, now: float, fold: Fold) -> None:
        """Choose who is asked, and hold the money for it; or wait, or let the attempt know why not."""
        if talk.asking is None:
            widest = max((len(p.model) for p in talk.begin.prices), default=0)
            size = len(due.request.canonical().encode("utf-8", "surrogatepass")) + widest
            talk.asking = Asking(due, size, reasons=list(talk.begin.left_out))
        asking = talk.asking
        if not asking.failures and self._reused(talk, asking, now, fold):
            return
        node = self._state.plan.nodes[talk.node]
        scopes = scopes_of(self._state, node.id)
        ask = Ask(
            prompt_tokens=self._bound(asking),
            max_tokens=due.request.max_tokens,
            run_id=self._bench.told_id,
            node=node.id,
            call=f"{talk.number}.{due.turn}",
        )
        patience_s = left_s(talk, node.timeout_s, now) + asking.waited_s
        room = books(self._state).left(scopes)
        alone = self._alone(talk, asking, ask, now)
        decision = choose(
            talk.begin.prices, ask, room, asking.failures, patience_s=patience_s, alone=alone, classes=self._classes
        )
        match decision:
            case Choice() if self._bench.replay is not None and self._bench.replay.ends(node.id, talk.call + 1):
                talk.waits = "delay"  # no such call was made: the end of the attempt is in the record
                asking.again_m = inf
            case GaveUp():
                asking.learn(decision.reasons)
                self._gave_up(talk, asking, decision, now)
            case OverBudget():
                asking.learn(decision.reasons)
                self._wait_for_money(talk, scopes, decision.wanted, now)
            case Choice() if decision.delay_s > asking.waited_s:
                self._delay(talk, asking, decision, now)
            case Choice() if decision.max_tokens < due.least_tokens or (_is_cut(decision) and self._is_held(scopes)):
                self._wait_for_money(talk, scopes, decision.reserve, now)
            case Choice():
                asking.learn(decision.reasons)
                self._reserve(talk, asking, decision, scopes, fold)

    def _alone(self, talk: Talk, asking: Asking, ask: Ask, now: float) -> dict[str, float]:
        """For how long each model is left alone, as other calls were told; a replay goes by what was recorded."""
        if self._bench.replay is not None:
            return dict.fromkeys(self._bench.replay.left_alone(ask.node, talk.call + 1), inf)
        found: dict[str, float] = {}
        for price in talk.begin.prices:
            left = self._limits.left_s(price.model, _caller(talk, asking), f"{ask.run_id}/{ask.node}/{ask.call}", now)
            if left > 0:
                found[price.model] = asking.waited_s + left
        return found

    def _bound(self, asking: Asking) -> int:
        request = asking.effect.request
        hidden = bool(request.tools) or request.schema is not None
        size = asking.prompt_bytes
        if self._state.plan.workflow.provider.budget == "estimate":
            size = -(-size // ESTIMATED_BYTES)
        return prompt_bound(size, hidden=hidden)

    def _delay(self, talk: Talk, asking: Asking, choice: Choice, now: float) -> None:
        asking.reasons = list(choice.reasons)
        pause_s = 0.0 if self._bench.replay is not None else choice.delay_s - asking.waited_s
        asking.waited_s, asking.again_m = choice.delay_s, now + pause_s
        talk.waits = "delay"
        self._timers.add(pause_s, "agent", talk.node, talk.number)

    def _is_held(self, scopes: Scopes) -> bool:
        """Whether other calls hold money of a scope with a cap."""
        ledger = books(self._state)
        return any(ledger.cap(scope) is not None and ledger.held(scope) for scope in scopes)

    def _wait_for_money(self, talk: Talk, scopes: Scopes, wanted: int, now: float) -> None:
        """There is not enough: wait for what other calls hold, else it is the end."""
        ledger = books(self._state)
        found = ledger.short(scopes, wanted)
        if (found is None or not found.stopped) and self._is_held(scopes):
            talk.waits = "money"
            self._short[talk.node] = None
            return
        if found is None:
            reason = "what is left buys no answer that is long enough"
        elif found.stopped:
            reason = "a call cost more than its bound before, so nothing more is spent"
        else:
            reason = (
                f"the next call may cost {dollars(wanted)}; {dollars(found.left)} of the "
                f"{dollars(ledger.cap(found.scope) or 0)} of {scope_text(found.scope)} are left"
            )
        talk.asking = None
        talk.state = step(talk.begin.task, talk.state, MoneyShort(reason, talk.at_s(now)))

    def _gave_up(self, talk: Talk, asking: Asking, decision: GaveUp, now: float) -> None:
        last = asking.last
        why = "; ".join(dict.fromkeys(f"{r.model or 'models'}: {r.text}" for r in asking.reasons))
        if last is None:
            kind: ErrorKind = "bad_request" if decision.kind == "no_model" else decision.kind
            last = CallFailed(kind=kind, message=f"no model can be asked: {why or 'none is permitted'}")
        elif len(asking.failures) > 1:
            last = replace(last, message=f"{last.message} (after {len(asking.failures)} tries: {why})")
        elif more := [reason.text for reason in asking.reasons if reason.code != last.kind]:
            last = replace(last, message=f"{last.message} ({'; '.join(more)})")
        talk.asking = None
        talk.state = step(talk.begin.task, talk.state, self._event(talk, last, None, now))

    def _reserve(self, talk: Talk, asking: Asking, choice: Choice, scopes: Scopes, fold: Fold) -> None:
        request = replace(asking.effect.request, model=choice.model, max_tokens=choice.max_tokens)
        tries = len(asking.failures) + 1
        event = self._reservation(talk, asking, request)
        fold(replace(event, tries=tries, amount=choice.reserve, scopes=scopes, reasons=reasons_json(asking.reasons)))
        asking.choice, asking.request, asking.reasons = choice, request, []
        talk.waits, talk.said = "model", ""
        self.must_sync = self.must_sync or (self._source.costs and choice.reserve > 0)
        self._outbox.append((talk, Asked(event.node, talk.number, asking.effect.turn, tries), request))

    def _reservation(self, talk: Talk, asking: Asking, request: Request) -> CallReserved:
        """The next call of an attempt, without money."""
        talk.call += 1
        kept = self._bench.context.put(delta(request, talk.before))
        talk.before = request
        return CallReserved(
            node=self._state.plan.ids[talk.node],
            attempt=talk.number,
            call=talk.call,
            turn=asking.effect.turn,
            model=request.model,
            max_tokens=request.max_tokens,
            digest=request.digest(),
            request=kept,
        )

    def _reused(self, talk: Talk, asking: Asking, now: float, fold: Fold) -> bool:
        """Whether a lost attempt had bought this very reply; it is taken then, and nothing is bought."""
        found = talk.reuse.reply(asking.effect.request) if talk.reuse is not None else None
        if found is None:
            return False
        reply = found.reply
        request = replace(asking.effect.request, model=found.model, max_tokens=found.max_tokens)
        event = self._reservation(talk, asking, request)
        fold(event)
        fold(
            CallEnded(
                node=event.node,
                attempt=talk.number,
                call=talk.call,
                books="release",
                answer=self._bench.context.put(answer_to_json(reply)),
                model=reply.model or request.model,
                usage=usage_counts(reply.usage) if reply.usage is not None else (),
                reused=found.origin,
            )
        )
        log_reply(talk, reply, 0, reused=found.origin)
        talk.asking = None
        before = talk.state
        talk.state = step(talk.begin.task, before, self._event(talk, reply, request.max_tokens, now))
        log_results(talk, before)
        return True

    def wind_up(self, talk: Talk, now: float, fold: Fold) -> None:
        """Nobody waits for the call of this attempt any more: what left may be billed, so it counts as spent."""
        self._short.pop(talk.node, None)
        if talk.waits != "model" or talk.asking is None:
            return
        if talk.key:
            self._source.cancel(talk.key)
            self._keys.pop(talk.key, None)
        sent_m = talk.asking.sent_m if talk.key else now
        node = self._state.plan.ids[talk.node]
        fold(
            CallEnded(
                node=node,
                attempt=talk.number,
                call=talk.call,
                books="keep" if talk.key else "release",
                error="timeout" if talk.ending and talk.ending.outcome is Outcome.TIMED_OUT else "cut",
                duration_ms=round((now - sent_m) * 1000),
            )
        )
        talk.key, talk.asking = 0, None
        self._money_moved(node, fold)

    # ------------------------------------------------------------ when the record is written

    def flush(self, now: float) -> None:
        """Let the calls go."""
        self.must_sync = False
        outbox, self._outbox = self._outbox, []
        for talk, asked, request in outbox:
            if talk.waits != "model" or talk.asking is None or talk.asking.request is not request:
                continue  # it was wound up
            self._key += 1
            talk.key = self._key
            self._keys[self._key] = talk
            talk.asking.sent_m = now
            left = left_s(talk, self._state.plan.nodes[talk.node].timeout_s, now)
            delay_s = self._source.ask(self._key, asked, request, max(1.0, left * CALL_SHARE), now)
            if delay_s is not None:
                self._timers.add(delay_s, "agent", talk.node, talk.number)
        self._watch.follow(self._source.fileno(), writing=self._source.wants_write)

    @property
    def watched(self) -> int:
        """The descriptor of the source, -1 for none."""
        return self._watch.fd

    def close(self) -> None:
        """The session is over."""
        self._source.close()


def _caller(talk: Talk, asking: Asking) -> str:
    """Who asks: a turn of an attempt, with all its tries."""
    return f"{talk.node}/{talk.number}/{asking.effect.turn}"


def _is_cut(choice: Choice) -> bool:
    """Whether the money, not the model, is why the answer may be shorter than was asked for."""
    return any(reason.code == "fewer_tokens" for reason in choice.reasons)
