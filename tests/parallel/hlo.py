"""Reads compiled programs: their collectives, and what depends on what."""

import re

_COLLECTIVE = re.compile(
    r"= (\([^)]*\)|\S+) (all-gather|all-reduce|reduce-scatter|"
    r"collective-permute|all-to-all)(?:-start)?\("
)
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "c64": 8, "f64": 8}
_NAME = re.compile(r"%[\w.-]+")
_CALLED = re.compile(
    r"(?:condition|body|calls|to_apply|metadata|branch_computations)="
    r"(?:\{[^}]*\}|%[\w.-]+)"
)


def collectives(compiled) -> list[tuple[str, int]]:
    """(kind, bytes of a result on a device) in the text's order.

    One that the compiler combined of several counts as several.
    """
    found = []
    for shapes, kind in _COLLECTIVE.findall(compiled.as_text()):
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = _BYTES[dtype]
            for dim in filter(None, dims.split(",")):
                size *= int(dim)
            found.append((kind, size))
    return found


# A computation whose result is a loop, and what calls one.
_LOOPS = re.compile(
    r"\n%([\w.\-]+) [^\n]*\{\n(?:[^}\n][^\n]*\n)*?"
    r"( *ROOT [^\n]* while\([^\n]*)"
)
_CALL = re.compile(r" call\(.*to_apply=%([\w.\-]+)")


def entry(compiled) -> dict[str, tuple[str, set[str]]]:
    """The entry computation: name -> (its line, names of its operands).

    A call of a loop, which newer releases make of a loop, is a loop's line.
    """
    text = compiled.as_text()
    loops = dict(_LOOPS.findall(text))
    body = text[text.index("\nENTRY ") :].split("\n}")[0]
    found = {}
    for line in body.splitlines()[1:]:
        name, _, right = line.strip().removeprefix("ROOT ").partition(" = ")
        called = _CALL.search(right)
        if called:
            line = loops.get(called[1], line)
        if right:
            found[name] = line, set(_NAME.findall(_CALLED.sub("", right)))
    return found


def reaches(graph, source: str, target: str) -> bool:
    """Whether `target` depends on `source`."""
    seen, todo = set(), [target]
    while todo:
        name = todo.pop()
        if name == source:
            return True
        if name in graph and name not in seen:
            seen.add(name)
            todo += graph[name][1]
    return False
