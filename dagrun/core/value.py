"""A dataclass that is cheap to define: the start of every command pays for each class there is.

To a type checker `value` is `dataclasses.dataclass`, so `frozen=True` holds where code is checked.
At run time only `__init__` is generated (0.15 ms a class, against 0.5 ms for frozen, slots, repr
and eq); equality, hash and repr are shared functions over the slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:
    from dataclasses import dataclass

    def value(*, frozen: bool, slots: bool, kw_only: bool):
        """The decorator; its words are those of `dataclasses.dataclass` and all have to be True."""
        assert all((frozen, slots, kw_only))

        def make(cls):
            made = dataclass(slots=True, kw_only=True, repr=False, eq=False, match_args=False)(cls)
            made.__eq__, made.__hash__, made.__repr__ = _eq, _hash, _repr
            return made

        return make

    def _eq(self, other):
        if self is other:
            return True
        if self.__class__ is not other.__class__:
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def _hash(self):
        return hash((self.__class__, *[getattr(self, name) for name in self.__slots__]))

    def _repr(self):
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{self.__class__.__name__}({shown})"


__all__ = ["value"]
