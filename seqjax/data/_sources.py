"""Where documents come from: the standard library, files, JSONL, tokens.

Every source gives the same documents in the same order whatever the machine's
directory order, and a key per document that depends on its relative name
only, so that a moved corpus splits as before.
"""

import glob
import json
import os
import sysconfig

import numpy as np

from seqjax.data import _config
from seqjax.data import _documents
from seqjax.data import _errors
from seqjax.data import _order
from seqjax.data import _token_file

# Tests, generated tables, bundled wheels and what Linux distributions ship in
# packages of their own: nothing a language model should spend its time on, and
# without it the corpus is nearly the same on every machine.
_STDLIB_SKIPPED = frozenset(
    {
        "__pycache__",
        "__phello__",
        "dist-packages",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
    }
)


def load(config: _config.DataConfig) -> _documents.Documents:
    """All documents of `source` and `path`."""
    if config.source == "stdlib":
        return stdlib()
    return from_path(config, "path")


def from_path(config: _config.DataConfig, field: str) -> _documents.Documents:
    """All documents of the files that a field of the config names."""
    files = _expand(field, getattr(config, field))
    if config.source == "files":
        documents = _text_files(files)
    elif config.source == "jsonl":
        documents = _jsonl(files, config.text_field)
    else:
        documents = _tokens(files, config.vocab_size)
    if len(documents) == 0:
        raise _errors.DataError(
            f"{field} {getattr(config, field)!r}: the text is empty "
            f"({len(files)} files, 0 bytes of text); give files that hold text"
        )
    return documents


def stdlib() -> _documents.Documents:
    """The .py files of the running interpreter's own library, by name."""
    root = sysconfig.get_path("stdlib")
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _STDLIB_SKIPPED)
        for file in files:
            # _sysconfigdata* is generated, another one on every machine.
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                path = os.path.join(folder, file)
                names.append(os.path.relpath(path, root).replace(os.sep, "/"))
    if not names:
        raise _errors.DataError(
            f"source 'stdlib': no .py files under {root}; this interpreter "
            "ships its library in another form, give text of your own with "
            "source='files' and path"
        )
    files = [(name, os.path.join(root, name)) for name in sorted(names)]
    return _text_files([f for f in files if os.path.isfile(f[1])])


def _expand(field: str, value: str) -> list[tuple[str, str]]:
    """(relative name, path) of the files a field names, sorted by name."""
    patterns = [value] if os.path.exists(value) else value.split(",")
    found = {}
    for pattern in filter(None, (part.strip() for part in patterns)):
        where = f"{field} {pattern!r}"
        if os.path.isdir(pattern):
            raise _errors.DataError(
                f"{where} is a directory; give a glob pattern such as "
                f"{os.path.join(pattern, '**', '*.txt')!r}"
            )
        if os.path.exists(pattern):
            found[os.path.abspath(pattern)] = os.path.basename(pattern)
            continue
        if not glob.has_magic(pattern):
            raise _errors.DataError(
                f"{where} does not exist (looked at "
                f"{os.path.abspath(pattern)}); check the path"
            )
        root = _fixed_part(pattern)
        matches = [
            path
            for path in glob.glob(pattern, recursive=True)
            if os.path.isfile(path)
        ]
        if not matches:
            raise _errors.DataError(
                f"{where} matches no file (looked from "
                f"{os.path.abspath(root)}); '**' matches folders of any "
                "depth, '*' what is in one"
            )
        for path in matches:
            name = os.path.relpath(path, root).replace(os.sep, "/")
            found.setdefault(os.path.abspath(path), name)
    return sorted((name, path) for path, name in found.items())


def _fixed_part(pattern: str) -> str:
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern or "."


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _errors.DataError(
            f"{path}: cannot be read ({error.strerror or error}); check that "
            "the file exists and that you may read it"
        ) from None


def _text_files(files: list[tuple[str, str]]) -> _documents.Documents:
    keys = [_order.name_key(name) for name, _ in files]
    return _documents.of_bytes(
        [_read(path) for _, path in files], np.array(keys, np.uint64)
    )


def _jsonl(files: list[tuple[str, str]], field: str) -> _documents.Documents:
    texts, keys = [], []
    for name, path in files:
        lines = _read(path).split(b"\n")
        keys.append(_order.draws(_order.name_key(name), len(lines)))
        for number, line in enumerate(lines, start=1):
            texts.append(_line_text(path, number, line, field))
    return _documents.of_bytes(texts, np.concatenate(keys))


def _line_text(path: str, number: int, line: bytes, field: str) -> bytes:
    if not line.strip():
        return b""
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _errors.DataError(
            f"{where}: is not JSON ({error}); each line must be one object "
            f"with a field {field!r}"
        ) from None
    if not isinstance(record, dict):
        raise _errors.DataError(
            f"{where}: must be a JSON object with a field {field!r}, got "
            f"{type(record).__name__}"
        )
    if field not in record:
        raise _errors.DataError(
            f"{where}: has no field {field!r}, only "
            f"{', '.join(repr(key) for key in list(record)[:8]) or 'none'}; "
            "set text_field to the one that holds the text"
        )
    if not isinstance(record[field], str):
        raise _errors.DataError(
            f"{where}: field {field!r} must be a string, got "
            f"{type(record[field]).__name__}"
        )
    try:
        return record[field].encode("utf-8")
    except UnicodeEncodeError as error:
        raise _errors.DataError(
            f"{where}: field {field!r} is no valid Unicode ({error.reason})"
        ) from None


def _tokens(
    files: list[tuple[str, str]], vocab_size: int
) -> _documents.Documents:
    opened, buffer, starts, lengths, keys = [], [], [], [], []
    for number, (name, path) in enumerate(files):
        tokens = _token_file.TokenFile(path)
        ends = tokens.scan(vocab_size)
        begins = np.concatenate([[0], ends[:-1]])
        opened.append(tokens)
        buffer.append(np.full(len(ends), number, np.int32))
        starts.append(begins)
        lengths.append(ends - begins)
        keys.append(_order.draws(_order.name_key(name), len(ends)))
    return _documents.Documents(
        tuple(opened),
        np.concatenate(buffer),
        np.concatenate(starts),
        np.concatenate(lengths),
        np.concatenate(keys),
    )
