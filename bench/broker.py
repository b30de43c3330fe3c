"""Many model calls at once, through the broker and straight: what do litellm and a process of its own cost?

    python bench/broker.py [--calls 100] [--latency 0.5] [--rounds 5]

A local server answers each call after --latency seconds. In turns: through dagrun's broker (ready, as it
is from a run's second call on), through bare httpx in a process of its own, which does the least that a
client can. Figures are wall clock of all calls together; the target is 1.5 s for 100 of 0.5 s.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dagrun.agent.live import AnsweredCall, BrokerLost, Live  # noqa: E402
from dagrun.agent.messages import Message, Reply, Request  # noqa: E402
from tests.agent.openai_server import Behaviour, Server  # noqa: E402

TARGET_S = 1.5
RAW = """
import asyncio, sys, time
import httpx
url, calls = sys.argv[1], int(sys.argv[2])
body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64, "stream": True}
async def one(client):
    async with client.stream("POST", url + "/chat/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            pass
async def main():
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        for line in sys.stdin:
            begin = time.monotonic()
            await asyncio.gather(*[one(client) for _ in range(calls)])
            print(time.monotonic() - begin, flush=True)
asyncio.run(main())
"""


def main() -> None:
    """Print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    behaviour = Behaviour(latency_s=given.latency, pieces=8, text="word " * 32)
    with Server(m=behaviour, warm=Behaviour()) as server:
        live = Live(environ=os.environ, base_url=server.url)
        raw = subprocess.Popen(
            [sys.executable, "-c", RAW, server.url, str(given.calls)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        try:
            begin = time.monotonic()
            broker(live, 1, "x/warm")
            print(f"broker: from its start to the first answer {time.monotonic() - begin:.2f} s")
            figures: dict[str, list[float]] = {"broker": [], "httpx": []}
            for _ in range(given.rounds):
                figures["broker"].append(broker(live, given.calls, "x/m"))
                raw.stdin.write("go\n")
                figures["httpx"].append(float(raw.stdout.readline()))
            report(figures, given.calls, given.latency)
        finally:
            live.close()
            raw.stdin.close()
            raw.wait()


def broker(live: Live, calls: int, model: str) -> float:
    """The seconds until all calls are answered."""
    request = Request(model=model, messages=(Message(role="user", content="hi"),), max_tokens=64)
    begin = time.monotonic()
    for number in range(calls):
        live.ask(number, request, 60.0)
    left = calls
    while left:
        select.select([live.fileno()], [live.fileno()] if live.wants_write else [], [], 60)
        for news in live.feed():
            match news:
                case AnsweredCall(_, Reply()):
                    left -= 1
                case AnsweredCall(_, failed):
                    sys.exit(f"a call failed: {failed}")
                case BrokerLost(text):
                    sys.exit(text)
    return time.monotonic() - begin


def report(figures: dict[str, list[float]], calls: int, latency: float) -> None:
    """Median, worst, and the ratio of the medians."""
    for name, found in figures.items():
        median, worst = statistics.median(found), max(found)
        print(f"{name:7} {calls} calls of {latency:g} s: median {median:.2f} s, worst {worst:.2f} s")
    ratio = statistics.median(figures["broker"]) / statistics.median(figures["httpx"])
    over = "" if calls != 100 or latency != 0.5 or statistics.median(figures["broker"]) <= TARGET_S else "  over"
    print(f"broker / httpx {ratio:.2f}{over}")


if __name__ == "__main__":
    main()
