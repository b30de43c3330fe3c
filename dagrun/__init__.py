"""dagrun runs a graph of commands and agents from one YAML file, and lets you change it while it runs."""

__version__ = "0.1.0"
