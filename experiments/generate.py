"""Continues prompts with a model from a folder.

    python -m experiments.generate --checkpoint=DIR --prompt="Once upon"

DIR is a checkpoint of another project (`seqjax.interop`), or the workdir of a
training run.  One prompt is answered as the tokens come; several, of
--prompts=FILE or of repeated --prompt, each when it is finished.  The text goes
to standard output, all else to standard error.

Exit codes: 0 done, 2 bad input.
"""

import pathlib
import sys
import time
from typing import Any, NamedTuple

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from experiments import opened as opened_lib
from experiments import texts
from seqjax import generation
from seqjax import models
from seqjax.training import flags as training_flags

FLAGS = flags.FLAGS


def _define_flags() -> None:
    string, whole = flags.DEFINE_string, flags.DEFINE_integer
    string("checkpoint", None, "Folder of the model, or a hub id.")
    flags.DEFINE_multi_string("prompt", [], "A prompt; may be repeated.")
    string("prompts", None, "File with a prompt a line.")
    whole("max_new_tokens", 128, "Tokens to make for each prompt.", 1)
    flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token.")
    whole("top_k", None, "Draw among so many likeliest tokens.")
    flags.DEFINE_float("top_p", None, "Draw among those of this probability.")
    whole("seed", 0, "Of what is drawn.")
    flags.DEFINE_multi_string("stop", [], "A string that ends a text.")
    flags.DEFINE_bool("ignore_eos", False, "Go on past end-of-text tokens.")
    flags.DEFINE_enum("tokens", "auto", texts.KINDS, "How text is read.")
    string("dtype", None, "Of the parameters, such as bfloat16.")
    whole("every", 4, "Tokens of one compiled call.", 1)
    flags.DEFINE_bool("verbose", False, "Show what the memory holds.")


class Rows(NamedTuple):
    """Prompts padded on the left.

    Attributes:
      tokens: int32 [B, T].
      segment_ids: int32 [B, T], -1 where there is none.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray


def pad(rows: list[list[int]], vocab_size: int) -> Rows:
    """Prompts of different lengths as one array.

    Raises:
      ValueError: a prompt is empty, or a token is outside the vocabulary.
    """
    for number, row in enumerate(rows, 1):
        if not row:
            raise ValueError(f"prompt {number} must hold a token, got none")
        wrong = [token for token in row if not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(
                f"prompt {number} has token {wrong[0]}, but the vocabulary "
                f"has {vocab_size}; --tokens tells how text is read"
            )
    length = max(map(len, rows))
    tokens = np.zeros((len(rows), length), np.int32)
    segment_ids = np.full_like(tokens, -1)
    for line, row in enumerate(rows):
        tokens[line, length - len(row) :] = row
        segment_ids[line, length - len(row) :] = 0
    return Rows(tokens, segment_ids)


def prompts_of(flag_values: Any) -> list[str]:
    """The prompts that the command line gives."""
    found = list(flag_values.prompt)
    if flag_values.prompts is not None:
        text = pathlib.Path(flag_values.prompts).read_text("utf-8")
        found += text.removesuffix("\n").split("\n")
    if not found:
        raise ValueError("give --prompt=TEXT, or --prompts=FILE with lines")
    return found


class Clock:
    """Seconds of prefill and decoding, compilation apart."""

    def __init__(self):
        self._start = time.perf_counter()
        self.first = self.later = 0.0
        self.tokens = 0  # made in `later`

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        self._start, seconds = now, now - self._start
        return seconds


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def describe(opened: opened_lib.Opened, batch: int, capacity: int) -> None:
    """What the model and its state take."""
    config = opened.model.config
    parameters = models.parameter_count(opened.params)
    say(f"{parameters:,} parameters, {config.depth} layers, {config.dtype}")
    one = models.state_bytes(config, 1)
    for name, size in models.state_bytes(config, capacity).items():
        layers = config.count(name)
        grows = "whatever the length"
        if size != one[name]:
            grows = f"for up to {capacity} tokens"
        say(
            f"state of {name}: {layers} layers x {batch} rows x {size:,} "
            f"bytes, {grows}"
        )


def generate(
    opened: opened_lib.Opened,
    rows: Rows,
    codec: texts.Codec,
    sampler: generation.Sampler,
) -> None:
    """Continues all prompts and prints the texts."""
    model, params = opened.model, opened.params
    batch, length = rows.tokens.shape
    calls = -(-FLAGS.max_new_tokens // FLAGS.every)
    capacity = length + calls * FLAGS.every
    if FLAGS.verbose:
        describe(opened, batch, capacity)
    last = int((rows.segment_ids >= 0).sum(axis=1).max()) + FLAGS.max_new_tokens
    if opened.longest is not None and last > opened.longest:
        say(
            f"the text may have {last} tokens, but the model was made for "
            f"{opened.longest} (max_position_embeddings)"
        )
    stop_tokens = () if FLAGS.ignore_eos else opened.stop_tokens
    streams = [
        texts.Stream(codec.decoder(row[shown].tolist()), FLAGS.stop)
        for row, shown in zip(rows.tokens, rows.segment_ids >= 0, strict=True)
    ]
    clock = Clock()
    state = generation.prefill(
        model,
        params,
        jnp.asarray(rows.tokens),
        model.init_cache(batch, capacity),
        jnp.asarray(rows.segment_ids),
    )
    jax.block_until_ready(state)
    real = int(np.sum(rows.segment_ids >= 0))
    say(f"read {real} tokens in {clock.lap():.1f} s (with compilation)")
    finished = np.zeros(batch, bool)
    for call in range(calls):
        drawn, state = generation.decode(
            model,
            params,
            state,
            FLAGS.every,
            sampler,
            jax.random.key(FLAGS.seed),
            stop_tokens,
        )
        left = FLAGS.max_new_tokens - call * FLAGS.every
        drawn = np.asarray(drawn)[:, :left]
        _time(clock, call, int(np.sum(drawn >= 0)))
        if FLAGS.verbose and call & (call + 1) == 0:  # 1, 2, 4, 8, ...
            made = length + (call + 1) * FLAGS.every
            held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.model))
            say(f"after {made} tokens the state holds {held:,} bytes")
        done = np.array(state.done)
        for row, stream in enumerate(streams):
            if finished[row]:
                continue
            last = call == calls - 1 or bool(done[row])
            shown = (drawn[row] >= 0) & ~np.isin(drawn[row], stop_tokens)
            text = stream.feed(drawn[row][shown], last)
            finished[row] = last or stream.stopped
            _show(row, batch, text, stream.text, bool(finished[row]))
        if finished.all():
            break
        state = state._replace(done=jnp.asarray(finished))
    total = clock.first + clock.later
    rate = f"{clock.tokens / clock.later:,.0f} tokens/s" if clock.later else "-"
    say(f"decoded in {total:.1f} s, {clock.first:.1f} s to compile; {rate}")


def _time(clock: Clock, call: int, made: int) -> None:
    if call == 0:
        clock.first = clock.lap()
    else:
        clock.later += clock.lap()
        clock.tokens += made


def _show(row: int, batch: int, new: str, text: str, finished: bool) -> None:
    """Prints what there is of a row: alone at once, among others when done."""
    if batch == 1:
        print(new, end="\n" if finished else "", flush=True)
    elif finished:
        print(f"[{row + 1}] {text}", flush=True)


def main(argv: list[str]) -> None:
    """Reads the command line, generates."""
    if not FLAGS.verbose:
        logging.set_verbosity(logging.WARNING)
    try:
        if argv[1:]:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        if FLAGS.checkpoint is None:
            raise ValueError("--checkpoint=DIR names the folder of a model")
        prompts = prompts_of(FLAGS)
        if "" in FLAGS.stop:
            raise ValueError("--stop must be a string that is not empty")
        # What can be wrong is found before a model is loaded.
        sampler = generation.Sampler(
            FLAGS.temperature, FLAGS.top_k, FLAGS.top_p
        )
        opened = opened_lib.open_folder(FLAGS.checkpoint, FLAGS.dtype)
        codec = texts.codec(FLAGS.tokens, opened.folder, opened.bytes)
        rows = [codec.encode(prompt) for prompt in prompts]
        padded = pad(rows, opened.model.config.vocab_size)
        generate(opened, padded, codec, sampler)
    except (ValueError, OSError) as error:
        sys.exit(training_flags.tell(str(error)))


if __name__ == "__main__":
    _define_flags()
    jax.config.config_with_absl()
    app.run(main)
