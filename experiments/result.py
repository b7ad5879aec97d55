"""What a finished run shows: baselines, a report, a sample, one last line."""

from collections.abc import Callable
import json
import os
import pathlib
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from experiments import baselines
from experiments import report
from seqjax import generation
from seqjax.training import background
from seqjax.training import config as config_lib
from seqjax.training import loop

SAMPLE_BYTES = 200
_PROMPT = b"def "


def show(
    config: config_lib.TrainConfig,
    outcome: loop.Outcome,
    workdir: str | os.PathLike[str],
    stop: Callable[[], bool],
) -> None:
    """Prints the sample and, last, the line with the validation bits/byte.

    Writes summary.json and report.html; a run that has them is only told
    about, not computed again.  Hold the workdir's lock.

    Raises:
      PreemptedError: ``stop`` came true; the next start shows it.
    """
    if jax.process_count() > 1:
        # The first process shows it, and generates with parameters of its own.
        whole = multihost_utils.process_allgather(outcome.params, tiled=True)
        outcome = outcome._replace(params=whole)
    if jax.process_index() > 0:
        return
    folder = pathlib.Path(workdir)
    path = folder / "summary.json"
    resolved = config_lib.to_dict(config)
    summary = _read(path) if outcome.already_done else None
    if summary is not None:
        print(f"{folder}: this run is finished, step {outcome.step}")
        if not (folder / "report.html").exists():
            report.write(folder, resolved, summary)
            print(f"{folder}/report.html was gone and is written again")
    else:
        begin = time.monotonic()
        job = background.Job(lambda: summarise(config, outcome))
        try:
            summary = job.wait(stop)
        except background.PreemptedError:
            print(f"{folder}: trained; the same command writes the report")
            raise
        report.write(folder, resolved, summary)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
        temporary.replace(path)
        seconds = time.monotonic() - begin
        print(f"baselines, sample and {folder}/report.html in {seconds:.1f} s")
        print(f"{SAMPLE_BYTES} bytes generated after {_PROMPT.decode()!r}:")
        print(summary["sample"])
    print(last_line(summary), flush=True)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """The summary of a finished run; None where it must be made again."""
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text())
        last_line(summary)
        report.facts(summary)
    except (ValueError, KeyError, TypeError, RecursionError):
        print(f"{path} is damaged and is made again")
        return None
    return summary


def last_line(summary: dict[str, Any]) -> str:
    """The line that scripts read; token files have no bytes to compare."""
    if "trigram" not in summary:
        return f"validation bits/token: {summary['bits_per_token']:.3f}"
    return (
        f"validation bits/byte: {summary['bits_per_token']:.3f} "
        f"(trigram {summary['trigram']:.3f}, zlib {summary['zlib']:.3f})"
    )


def summarise(
    config: config_lib.TrainConfig, outcome: loop.Outcome
) -> dict[str, Any]:
    """The validation beside the baselines on the same text, and a sample."""
    summary = {
        "step": outcome.step,
        "bits_per_token": outcome.validation["validation_bits_per_token"],
        "validation_tokens": outcome.validation["validation_tokens"],
    }
    if config.data.source == "tokens":
        return summary | {"sample": "(token files: no bytes to show)"}
    held_out = outcome.corpus.validation_documents
    trigram = baselines.Trigram(outcome.corpus.train_documents)
    return summary | {
        "trigram": trigram.bits_per_byte(held_out),
        "zlib": baselines.zlib_bits_per_byte(held_out),
        "sample": sample(outcome.model, outcome.params, config.seed),
    }


def sample(model: Any, params: Any, seed: int) -> str:
    """Text generated after the prompt, the prompt included."""
    prompt = np.frombuffer(_PROMPT, np.uint8).astype(np.int32)
    tokens = generation.generate(
        model,
        params,
        jnp.asarray(prompt)[None],
        max_new_tokens=SAMPLE_BYTES,
        temperature=0.7,
        key=jax.random.key(seed),
    )
    # A model of more than 256 tokens may emit what is no byte.
    new = bytes(int(t) if t < 256 else 63 for t in np.asarray(tokens)[0])
    text = (_PROMPT + new).decode("utf-8", errors="replace")
    # A terminal must survive what an untrained model says.
    shown = (c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    return "".join(shown)
