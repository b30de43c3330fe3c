"""A small MCP server over stdin and stdout, with the standard library alone: one JSON message a line."""

import json
import sys

TOOLS = [
    {
        "name": "celsius",
        "description": "Degrees Celsius of a temperature in degrees Fahrenheit.",
        "inputSchema": {
            "type": "object",
            "properties": {"fahrenheit": {"type": "number"}},
            "required": ["fahrenheit"],
        },
    },
    {
        "name": "grams",
        "description": "Grams of a weight in ounces.",
        "inputSchema": {"type": "object", "properties": {"ounces": {"type": "number"}}, "required": ["ounces"]},
    },
]


def call(name, given):
    """The text that a tool gives. Raises KeyError for an unknown tool or a missing argument."""
    if name == "celsius":
        return str(round((given["fahrenheit"] - 32) / 1.8, 1))
    return {"grams": lambda: str(round(given["ounces"] * 28.3495, 1))}[name]()


def answer(method, params):
    """The result of a request. Raises KeyError for what this server does not know."""
    if method == "initialize":
        about = {"name": "units", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        return {"tools": TOOLS}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": call(params["name"], params.get("arguments") or {})}]}
    raise KeyError(method)


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue  # it only tells us something
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    try:
        reply["result"] = answer(message["method"], message.get("params") or {})
    except KeyError as error:
        reply["error"] = {"code": -32602, "message": f"unknown: {error}"}
    print(json.dumps(reply), flush=True)
