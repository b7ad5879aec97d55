"""What README.md and docs/ show is run, and what they name exists.

Python blocks of a page run in order in one fresh namespace; a `text` block
right after one is what it prints. Commands in console and bash blocks are read:
their make targets, modules and paths must be there.
"""

import importlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

import pytest

from experiments import figures
from tests import _tree
from tests import xla_flags

# Made by running something, so absent from a fresh checkout.
MADE = ("runs", ".venv", ".venv-kernels", ".cache")
PACKAGES = ("seqjax", "seqjax_kernels", "experiments", "benchmarks", "tests")
LAST_LINE = re.compile(
    r"validation bits/byte: \d\.\d{3} \(trigram \d\.\d{3}, zlib \d\.\d{3}\)"
)
_FENCE = re.compile(
    r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_PATH = re.compile(r"\.?[\w-][\w.-]*(/[\w.-]+)*/?")

RUN_BLOCKS = """
import contextlib, io, json, sys

printed = {}
for page, blocks in json.load(sys.stdin).items():
    space = {"__name__": "__main__"}
    printed[page] = []
    for line, source in blocks:
        # Blank lines in front make a traceback point into the page.
        code = compile("\\n" * line + source, page, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, space)
        printed[page].append(out.getvalue())
json.dump(printed, sys.stdout)
"""


class Block(NamedTuple):
    """A fenced block: its language, the line of its fence, its text."""

    kind: str
    line: int
    text: str
    end: int


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a Markdown page, in order."""
    return [
        Block(
            match["kind"],
            page.count("\n", 0, match.start()) + 1,
            match["text"],
            match.end(),
        )
        for match in _FENCE.finditer(page)
    ]


def examples_of(page: str) -> list[tuple[Block, str | None]]:
    """Python blocks, each with the output that stands right below it."""
    blocks = blocks_of(page)
    examples = []
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.kind != "python":
            continue
        shown = None
        if after is not None and after.kind == "text":
            between = page[block.end : page.index("```text", block.end)]
            shown = after.text if not between.strip() else None
        examples.append((block, shown))
    return examples


def commands_of(page: str) -> list[list[str]]:
    """The commands of console and bash blocks, split into words.

    A console block marks its commands with `$ `; the rest is their output.
    """
    found = []
    for block in blocks_of(page):
        if block.kind not in ("console", "bash"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.kind == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


def faults_of_command(words: list[str], targets: set[str]) -> list[str]:
    """What a command names that is not there."""
    faults = []
    said = " ".join(words)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "make":
        faults += [
            f"{said}: the Makefile has no target {word}"
            for word in rest
            if "=" not in word and word not in targets
        ]
    elif program.split("/")[-1].startswith("python"):
        if "-m" in rest:
            module = rest[rest.index("-m") + 1]
            if module.split(".")[0] in PACKAGES and not _finds(module):
                faults.append(f"{said}: there is no module {module}")
    elif program not in ("git", "cd", "pip", "tensorboard", "kill"):
        faults.append(f"{said}: this test cannot judge {program}")
    for word in rest:
        value = word.split("=", 1)[-1]
        if "/" in value and _PATH.fullmatch(value):
            faults += faults_of_path(value)
    return faults


def faults_of_path(path: str) -> list[str]:
    """A fault if nothing lies at this path of the repository."""
    if path.split("/")[0] in MADE or (_tree.ROOT / path).exists():
        return []
    return [f"there is no {path}"]


def faults_of_prose(page: str, name: str = "README.md") -> list[str]:
    """Links and `code` in the text that point to nothing.

    Links are relative to the page, paths in `code` to the repository.
    """
    prose = _FENCE.sub("", page)
    folder = pathlib.PurePosixPath(name).parent
    faults = []
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        if "://" not in target:
            faults += faults_of_path(str(folder / target))
    for code in re.findall(r"`([^`\n]+)`", prose):
        if code.startswith("make "):
            faults += faults_of_command(code.split(), make_targets())
        elif "/" in code and _PATH.fullmatch(code):
            faults += faults_of_path(code)
        elif re.fullmatch(r"\w+(\.\w+)+", code):
            if code.split(".")[0] in PACKAGES and not _resolves(code):
                faults.append(f"there is no {code}")
    return faults


def make_targets() -> set[str]:
    """The targets that `make help` lists."""
    text = (_tree.ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))


def _finds(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _resolves(dotted: str) -> bool:
    """True if a dotted name is a module or an attribute of one."""
    if _finds(dotted):
        return True
    parent, _, name = dotted.rpartition(".")
    return (
        bool(parent)
        and _finds(parent)
        and hasattr(importlib.import_module(parent), name)
    )


def pages() -> dict[str, str]:
    """The text of README.md and of every page in docs/, by path."""
    paths = [_tree.ROOT / "README.md", *(_tree.ROOT / "docs").glob("*.md")]
    return {
        str(path.relative_to(_tree.ROOT)): path.read_text()
        for path in sorted(paths)
    }


PAGES = pages()
every_page = pytest.mark.parametrize("name", PAGES)


def run_examples(names, folder) -> dict[str, list[str]]:
    """What the Python blocks of pages print, in a fresh interpreter."""
    environment = dict(os.environ)
    # One device, as a reader has.
    environment["XLA_FLAGS"] = xla_flags.flags(devices=1)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(_tree.ROOT), str(_tree.ROOT / "kernels")]
    )
    sources = {
        name: [(b.line, b.text) for b, _ in examples_of(PAGES[name])]
        for name in names
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_BLOCKS],
        input=json.dumps(sources),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["README", "docs"])
def test_python_blocks_print_what_is_shown(where, tmp_path):
    names = [name for name in PAGES if name.startswith(where)]
    faults = []
    for name, printed in run_examples(names, tmp_path).items():
        for (block, shown), text in zip(
            examples_of(PAGES[name]), printed, strict=True
        ):
            if shown is not None and text.rstrip() != shown.rstrip():
                faults.append(f"{name}, line {block.line}, prints:\n{text}")
    assert not faults, "\n".join(faults)


@every_page
def test_pages_show_examples(name):
    assert examples_of(PAGES[name]), f"{name} shows no Python"


@every_page
def test_commands_can_be_typed(name):
    targets = make_targets()
    faults = [
        fault
        for words in commands_of(PAGES[name])
        for fault in faults_of_command(words, targets)
    ]
    assert not faults, "\n".join(faults)


@every_page
def test_text_names_only_what_exists(name):
    faults = faults_of_prose(PAGES[name], name)
    assert not faults, "\n".join(faults)


def test_readme_opens_with_its_two_commands():
    commands = commands_of(PAGES["README.md"])
    assert commands[:2] == [["make", "train"], ["make", "test"]]


def test_every_page_is_linked():
    index = PAGES["docs/README.md"]
    for name in PAGES:
        if name not in ("README.md", "docs/README.md"):
            assert f"({name.removeprefix('docs/')})" in index, name
    assert "(docs/README.md)" in PAGES["README.md"]


def test_operators_are_drawn():
    """By code, so that a picture can be drawn again."""
    drawn = set()
    for name, page in PAGES.items():
        drawn |= set(re.findall(r"!\[mixing matrices\]\(figures/(\w+)", page))
        if name.startswith("docs/") and "state" in page and "weak at" in page:
            assert "](figures/" in page, name
    assert drawn == set(figures.FIGURES)


def test_last_line_of_training_is_shown():
    assert LAST_LINE.search(PAGES["README.md"])


PAGE = """# title
Read `tests/_tree.py`, `tests/none.py` and `tests._tree.ROOT`, `tests._tree.NO`.
Then [this](none.md), `make test` and `make tea`, `runs/x` and `y = f(x)`.
```python
print(1 + 1)
```
```text
2
```
```console
$ make train  # both
validation
$ python -m tests._tree \\
    --config=tests/none.py
```
```bash
X=1 make tea ARGS=3
rm -r x
```
"""


def test_reader_finds_faults_in_a_page():
    (example,) = examples_of(PAGE)
    assert example[0].line == 4
    assert example[0].text == "print(1 + 1)\n" and example[1] == "2\n"
    commands = commands_of(PAGE)
    assert commands[0] == ["make", "train"] and len(commands) == 4
    faults = [faults_of_command(words, {"train"}) for words in commands]
    assert faults == [
        [],
        ["there is no tests/none.py"],
        ["X=1 make tea ARGS=3: the Makefile has no target tea"],
        ["rm -r x: this test cannot judge rm"],
    ]
    assert faults_of_prose(PAGE) == [
        "there is no none.md",
        "there is no tests/none.py",
        "there is no tests._tree.NO",
        "make tea: the Makefile has no target tea",
    ]
