"""Agents: their tools, and the programs that run them inside a sandbox."""
