"""Workflow files: YAML text with positions, its shape, its way into the core's types, its cache."""
