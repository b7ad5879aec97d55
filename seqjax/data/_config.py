"""What a run reads: one typed, flat configuration."""

import dataclasses
import difflib

from seqjax.data import _errors
from seqjax.data import bytes_tokenizer

SOURCES = ("stdlib", "files", "jsonl", "tokens")


@dataclasses.dataclass
class DataConfig:
    """Where text comes from and how it becomes batches.

    Attributes:
      source: "stdlib", the running interpreter's own library as text;
        "files", each file is one document; "jsonl", each line is one;
        "tokens", token files as `write_token_file` makes them.
      path: the file or glob pattern ("corpus/**/*.txt") of every source but
        stdlib; several are joined with commas.
      validation_path: like `path`, held-out text given apart; needs
        `validation_fraction` 0. "" holds out a part of `path`.
      text_field: jsonl only: the field of a line that holds its text.
      vocab_size: tokens only: every id of the files must be below it. Text is
        read as bytes and always has 256.
      sequence_length: T, tokens in a row.
      batch_size: rows in a batch over ALL processes.
      pack: True: documents follow one another through the rows, which are all
        full; False: a row holds one piece of one document, then padding.
      seed: decides the order; another seed is another order.
      validation_fraction: part held out, in [0, 1); 0 holds out nothing.
      validation_tokens: validate on at most this many tokens; 0 on all.
      num_workers: processes that build batches; 0 does it in a thread of this
        one. The batches are the same.
    """

    source: str = "stdlib"
    path: str = ""
    validation_path: str = ""
    text_field: str = "text"
    vocab_size: int = bytes_tokenizer.VOCAB_SIZE
    sequence_length: int = 256
    batch_size: int = 16
    pack: bool = True
    seed: int = 0
    validation_fraction: float = 0.05
    validation_tokens: int = 0
    num_workers: int = 0

    def validate(self) -> None:
        """Checks every field; reads no file.

        Raises:
          DataError: names the field, the value and what is accepted.
        """
        _check_types(self)
        _check_choice(self.source)
        _check_ranges(self)
        _check_combinations(self)


def _fail(field: str, value: object, accepted: str) -> None:
    raise _errors.DataError(f"{field} must be {accepted}, got {value!r}")


def _check_types(config: DataConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind = type(field.default)
        if kind is float and type(value) is int:
            continue
        if type(value) is not kind:
            _fail(field.name, value, f"of type {kind.__name__}")


def _check_choice(source: str) -> None:
    if source in SOURCES:
        return
    near = difflib.get_close_matches(source.lower(), SOURCES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    accepted = ", ".join(repr(name) for name in SOURCES)
    raise _errors.DataError(
        f"source must be one of {accepted}, got {source!r}{hint}"
    )


def _check_ranges(config: DataConfig) -> None:
    for field in ("sequence_length", "batch_size"):
        if getattr(config, field) < 1:
            _fail(field, getattr(config, field), "at least 1")
    for field in ("seed", "validation_tokens", "num_workers"):
        if getattr(config, field) < 0:
            _fail(field, getattr(config, field), "0 or more")
    if config.seed >= 2**63:
        _fail("seed", config.seed, "below 2**63")
    if not 1 <= config.vocab_size <= 2**31:
        _fail("vocab_size", config.vocab_size, "from 1 to 2**31")
    if not 0.0 <= config.validation_fraction < 1.0:
        _fail("validation_fraction", config.validation_fraction, "in [0, 1)")


def _check_combinations(config: DataConfig) -> None:
    source = config.source
    if source == "stdlib":
        for field in ("path", "validation_path"):
            if getattr(config, field):
                _fail(
                    field,
                    getattr(config, field),
                    "empty with source='stdlib', which reads the "
                    "interpreter's own library (to read files set source to "
                    "'files', 'jsonl' or 'tokens')",
                )
    elif not config.path:
        _fail("path", "", f"a file or glob pattern with source={source!r}")
    if source != "jsonl" and config.text_field != "text":
        _fail(
            "text_field",
            config.text_field,
            f"left at 'text' with source={source!r}: only 'jsonl' reads it",
        )
    if source == "jsonl" and not config.text_field:
        _fail("text_field", "", "the name of the field that holds the text")
    if source != "tokens" and config.vocab_size != bytes_tokenizer.VOCAB_SIZE:
        _fail(
            "vocab_size",
            config.vocab_size,
            f"256 with source={source!r}, which is read as bytes",
        )
    if config.validation_path and config.validation_fraction:
        _fail(
            "validation_fraction",
            config.validation_fraction,
            "0 when validation_path gives the held-out text",
        )
    if config.validation_tokens and not (
        config.validation_path or config.validation_fraction
    ):
        _fail(
            "validation_tokens",
            config.validation_tokens,
            "0 when nothing is held out (validation_fraction is 0 and "
            "validation_path is empty)",
        )
