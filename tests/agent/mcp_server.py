"""An MCP server of the tests, by hand and with the standard library alone: `python mcp_server.py [MODE…]`.

Modes: pages (one tool a page), noisy (asks and tells between its answers), other (another description),
garbage, old (a protocol nobody speaks), refuse, mute, batch, child (leaves a process behind), die (at start).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

Message = dict[str, Any]


def tool(name: str, words: str, **properties: str) -> Message:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"name": name, "title": "ignored", "description": words, "inputSchema": schema}


TOOLS = [
    tool("echo", "Say it again.", text="string"),
    tool("env", "What it was started with."),
    tool("shell", "Run a command.", command="string"),
    tool("fail", "Fails."),
    tool("odd", "Answers with all kinds of content."),
    tool("refuse", "Answers with an error of the protocol."),
    tool("big", "A long text.", size="integer"),
    tool("sleep", "Answers late.", seconds="number"),
    tool("die", "Ends the server."),
    tool("lie", "Says what is no answer."),
]


def said(text: str, **more: Any) -> Message:
    return {"content": [{"type": "text", "text": text}], **more}


def called(name: str, given: Message) -> Message:
    """The result of a tool."""
    match name:
        case "echo":
            return said(given["text"])
        case "env":
            return said("\n".join(sorted(f"{key}={value}" for key, value in os.environ.items())))
        case "shell":
            done = subprocess.run(["/bin/sh", "-c", given["command"]], capture_output=True, text=True, check=False)
            return said(done.stdout + done.stderr, isError=done.returncode != 0)
        case "fail":
            return said("it did not work", isError=True)
        case "odd":
            parts: list[Message] = [
                {"type": "text", "text": "one"},
                {"type": "image", "data": "AAAA", "mimeType": "image/png"},
                {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
                {"type": "resource", "resource": {"uri": "file:///x", "text": "two"}},
                {"type": "resource", "resource": {"uri": "file:///y", "blob": "AAAA"}},
                {"type": "resource_link", "uri": "https://example.org/z", "name": "z"},
                {"type": "hologram"},
            ]
            return {"content": parts}
        case "big":
            return said("x" * given["size"])
        case "sleep":
            time.sleep(given["seconds"])
            return said("awake")
        case "die":
            sys.stderr.write("I die\n")
            sys.stderr.flush()
            os._exit(7)
    raise KeyError(name)


def answer(message: Message, modes: list[str]) -> Message | None:
    """What the server says to one message; None for what wants no answer."""
    number, method, params = message.get("id"), message.get("method"), message.get("params") or {}
    if number is None or method is None:
        return None
    result: Message
    if method == "initialize":
        if "refuse" in modes:
            return {"jsonrpc": "2.0", "id": number, "error": {"code": -32602, "message": "not today"}}
        speaks = "1999-01-01" if "old" in modes else params["protocolVersion"]
        result = {"protocolVersion": speaks, "capabilities": {} if "no-tools" in modes else {"tools": {}}}
        result["serverInfo"] = {"name": "hand", "version": "1"}
    elif method == "tools/list":
        result = listed(params, modes)
    elif method == "tools/call" and params["name"] != "refuse":
        result = called(params["name"], params["arguments"])
    else:
        return {"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": f"no {method}"}}
    return {"jsonrpc": "2.0", "id": number, "result": result}


def listed(params: Message, modes: list[str]) -> Message:
    tools = [{**t, "description": "Other words."} for t in TOOLS] if "other" in modes else TOOLS
    if "pages" not in modes:
        return {"tools": tools}
    at = int(params.get("cursor", "0"))
    return {"tools": tools[at : at + 1], **({"nextCursor": str(at + 1)} if at + 1 < len(tools) else {})}


def say(*messages: Message) -> None:
    for message in messages:
        sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def noise() -> None:
    say(
        {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "hello"}},
        {"jsonrpc": "2.0", "id": "ping-1", "method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {"messages": []}},
        {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"},
    )


def main(modes: list[str]) -> None:
    if "die" in modes:
        sys.exit("I can't begin")
    if "child" in modes:
        subprocess.Popen(["setsid", "sleep", modes[-1]])
    for line in sys.stdin:
        message = json.loads(line)
        if "mute" in modes:
            continue
        if "garbage" in modes:
            sys.stdout.write("Welcome to this server!\n")
        if "noisy" in modes:
            noise()
        if message.get("params", {}).get("name") == "lie":
            say({"jsonrpc": "2.0", "id": 999, "result": {}})
            continue
        found = answer(message, modes)
        if found is not None and "batch" in modes:
            sys.stdout.write(json.dumps([found]) + "\n")
            sys.stdout.flush()
        elif found is not None:
            say(found)


if __name__ == "__main__":
    main(sys.argv[1:])
