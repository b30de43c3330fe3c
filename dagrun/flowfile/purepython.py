"""PyYAML's own parser as an event source, for a Python whose PyYAML was built without libyaml.

Some ten times slower than libyaml; imported only where that is missing.
"""

from __future__ import annotations

from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner


class PureParser(Reader, Scanner, Parser):
    """The events of a text, the same as libyaml's."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
