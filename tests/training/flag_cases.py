"""Configurations for test_flags, and for the config files it writes."""

import dataclasses


@dataclasses.dataclass
class Inner:
    width: int = 8
    pattern: tuple[str, ...] = ("a", "b")
    pair: tuple[int, int] = (1, 2)
    window: int | None = None
    rate: float = 0.5


@dataclasses.dataclass
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    debug: bool = False
    name: str = "x"
