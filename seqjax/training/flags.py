"""The command line of an experiment: a config file and typed overrides.

    --config=FILE --workdir=DIR [--config.model.width=256 ...]

A config file defines ``get_config()``, which returns a dataclass whose fields
are plain values or further dataclasses.  Everything that can be wrong with a
name, a type or a value is found here, before a device is touched, and told in
one message that names the field, what came, what is accepted and the nearest
name that exists.
"""

import ast
from collections.abc import Callable, Sequence
import dataclasses
import difflib
import os
import re
import runpy
import sys
import traceback
import types
import typing
from typing import Any

from absl import flags

EXIT_BAD_INPUT = 2


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says what to change."""


def nearest(name: str, accepted: Sequence[str]) -> str:
    """ " did you mean 'x'?" where a name is close, else the accepted names."""
    # Case is a frequent slip, so it does not count.
    folded = {known.lower(): known for known in reversed(accepted)}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    if close:
        near = folded[close[0]]
        return f"did you mean {near!r}? Accepted: {', '.join(accepted)}"
    return f"accepted: {', '.join(accepted)}"


def with_paths(message: str, group: str, fields: Any) -> str:
    """The message of a part, with its field names as the command line's.

    Parts are used on their own as well and then speak of "path"; from here
    it is "data.path".  Only what is surely a name of the dataclass
    ``fields`` is changed: one with an underscore, before "=" or "was", at the
    start, or after "set".
    """
    names = sorted(_names(fields), key=len, reverse=True)
    plain = "|".join(name for name in names if "_" not in name)
    long = "|".join(name for name in names if "_" in name) or "(?!)"
    alone = r"(?<![\w./'\"=-])"  # no part of a word, path or quotation
    pattern = (
        rf"{alone}(?:(?:{long})(?![\w/'\"-])|(?:{plain})(?= ?=| was )|"
        rf"(?:^|(?<=set ))(?:{plain})(?= ))"
    )
    return re.sub(pattern, lambda found: f"{group}.{found[0]}", message)


def _names(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _describe(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _matches(value: Any, annotation: Any) -> bool:
    """Whether a Python value is of the annotated type; int passes as float."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in args)
    if origin is typing.Literal:
        return value in args
    if origin in (tuple, list):
        if not isinstance(value, origin):
            return False
        if origin is list or (len(args) == 2 and args[1] is Ellipsis):
            return all(_matches(item, args[0]) for item in value)
        return len(value) == len(args) and all(
            _matches(item, option)
            for item, option in zip(value, args, strict=True)
        )
    if origin is dict:
        return isinstance(value, dict)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _tuples(value: Any) -> Any:
    """A literal with its lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value


def read_value(text: str, annotation: Any) -> Any:
    """Reads the text of an override as the annotated type.

    Strings need no quotes, and tuples no parentheses: ``gla,gla,attention``.

    Raises:
      ValueError: the text is no value of that type.
    """
    candidates: list[Any] = []
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        candidates.append(lowered == "true")
    if lowered in ("none", "null"):
        candidates.append(None)
    try:
        candidates.append(ast.literal_eval(text))
        candidates.append(_tuples(candidates[-1]))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass  # no literal; MemoryError is that of a parser too deep
    candidates.append(text)
    pieces = text.strip("()[] ").split(",")
    candidates.append(tuple(p.strip(" '\"") for p in pieces if p.strip(" '\"")))
    for value in candidates:
        if _matches(value, annotation):
            return value
    raise ValueError(text)


def override(config: Any, path: str, text: str) -> None:
    """Sets ``config.a.b`` from text; raises ConfigError."""
    holder, names = config, path.split(".")
    for depth, name in enumerate(names):
        prefix = ".".join(["config", *names[:depth]])
        if not dataclasses.is_dataclass(holder):
            raise ConfigError(
                f"--config.{path}: {prefix} is a plain value and has no field "
                f"{name!r}"
            )
        if name not in _names(holder):
            raise ConfigError(
                f"--config.{path}={text}: {prefix} has no field {name!r}; "
                f"{nearest(name, _names(holder))}"
            )
        if depth < len(names) - 1:
            holder = getattr(holder, name)
    annotation = typing.get_type_hints(type(holder))[names[-1]]
    if dataclasses.is_dataclass(getattr(holder, names[-1])):
        fields = ", ".join(_names(getattr(holder, names[-1])))
        raise ConfigError(
            f"--config.{path}={text}: this is a group of fields, set one of "
            f"them: {fields}"
        )
    try:
        value = read_value(text, annotation)
    except ValueError:
        raise ConfigError(
            f"--config.{path}={text}: expected {_describe(annotation)}, got "
            f"{text!r}"
        ) from None
    setattr(holder, names[-1], value)


def check_types(config: Any, prefix: str = "config") -> None:
    """Checks every field of a dataclass tree against its annotation.

    Also finds a field that a config file set by assignment under a wrong
    name, which Python itself accepts.
    """
    hints = typing.get_type_hints(type(config))
    for name in vars(config):
        if name not in hints:
            raise ConfigError(
                f"{prefix} has no field {name!r}; "
                f"{nearest(name, _names(config))}"
            )
    for name in _names(config):
        value, annotation = getattr(config, name), hints[name]
        if not _matches(value, annotation):
            raise ConfigError(
                f"{prefix}.{name}: expected {_describe(annotation)}, got "
                f"{value!r} of type {type(value).__name__}"
            )
        if dataclasses.is_dataclass(value):
            check_types(value, f"{prefix}.{name}")


def _dataclasses_in(kind: type) -> dict[str, type]:
    found = {kind.__name__: kind}
    for annotation in typing.get_type_hints(kind).values():
        if isinstance(annotation, type) and dataclasses.is_dataclass(
            annotation
        ):
            found |= _dataclasses_in(annotation)
    return found


def load_config(path: str, kind: type) -> Any:
    """Runs ``get_config()`` of a config file, which must return a ``kind``.

    "FILE.py:VARIANT" is ``get_config("VARIANT")``.
    """
    path, colon, variant = path.partition(".py:")
    path += colon[:-1]
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        files = [
            os.path.join(os.path.dirname(path), name)
            for name in (os.listdir(folder) if os.path.isdir(folder) else [])
            if name.endswith(".py") and name != "__init__.py"
        ]
        hint = nearest(path, sorted(files)) if files else "give a Python file"
        raise ConfigError(f"--config={path}: no such file; {hint}")
    try:
        module = runpy.run_path(path)
        if "get_config" not in module:
            raise ConfigError(
                f"--config={path}: the file defines no get_config()"
            )
        config = module["get_config"](*([variant] if colon else []))
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == path]
        where = f"{path}:{lines[-1]}" if lines else path
        raise ConfigError(
            f"--config={path}: {where}: {type(error).__name__}: {error}"
            + _nearest_argument(str(error), kind)
        ) from error
    if not isinstance(config, kind):
        raise ConfigError(
            f"--config={path}: get_config() must return a {kind.__name__}, "
            f"got {type(config).__name__}"
        )
    return config


def _nearest_argument(message: str, kind: type) -> str:
    pattern = r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'"
    found = re.search(pattern, message)
    known = _dataclasses_in(kind)
    if not found or found[1] not in known:
        return ""
    return "; " + nearest(found[2], _names(known[found[1]]))


def split_overrides(
    argv: Sequence[str],
) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes the --config.x.y=value arguments out of argv, in order."""
    rest, overrides = [], []
    for argument in argv:
        found = re.fullmatch(
            r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL
        )
        if not found:
            rest.append(argument)
            continue
        negated, path, text = found.groups()
        if negated and text is not None:
            raise ConfigError(f"{argument}: --noconfig.{path} takes no value")
        default = "false" if negated else "true"
        overrides.append((path, default if text is None else text))
    return rest, overrides


def parser(kind: type) -> Callable[[Sequence[str]], Any]:
    """A ``flags_parser`` for ``absl.app.run`` whose main receives the config.

    Needs the absl string flags ``config`` and ``workdir``.  On a bad command
    line it prints one message and exits with EXIT_BAD_INPUT.
    """

    def parse(argv: Sequence[str]) -> Any:
        try:
            rest, overrides = split_overrides(argv)
            extra = flags.FLAGS(rest)[1:]
            if extra:
                raise ConfigError(
                    f"unexpected argument {extra[0]!r}; accepted are "
                    f"--config=FILE, --workdir=DIR and --config.FIELD=VALUE"
                )
            for name in ("config", "workdir"):
                if not flags.FLAGS[name].value:
                    raise ConfigError(f"--{name}=... is required")
            config = load_config(str(flags.FLAGS["config"].value), kind)
            check_types(config)
            for path, text in overrides:
                override(config, path, text)
            check_types(config)
            config.validate()
        except (flags.Error, ValueError) as error:
            fail(str(error))
        return config

    return parse


def of_the_system(error: OSError) -> str:
    """A message for an error that the system gave, with the usual remedies."""
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"{where}{error.strerror or error}; check permissions and free space "
        "there, then start the same command again: it goes on from its newest "
        "checkpoint"
    )


def tell(message: str) -> int:
    """Prints one message; returns EXIT_BAD_INPUT."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT


def fail(message: str) -> typing.NoReturn:
    """Prints one message and exits with EXIT_BAD_INPUT."""
    sys.exit(tell(message))
