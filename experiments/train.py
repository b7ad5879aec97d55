"""Trains a language model.

    python -m experiments.train --config=experiments/configs/NAME.py \
        --workdir=DIR [--config.FIELD=VALUE ...]

The same command resumes a run, or says that it is finished.  Exit codes: 0
done, 2 bad input, 3 a loss or gradient that is not finite, 75 stopped by
SIGTERM or SIGINT with everything saved (run the same command again).
"""

import os
import sys

from absl import app
from absl import flags as absl_flags
import jax

from seqjax.training import config as config_lib
from seqjax.training import flags

absl_flags.DEFINE_string("config", None, "Python file with get_config().")
absl_flags.DEFINE_string("workdir", None, "Where the run is kept.")

EXIT_NONFINITE = 3


def main(config: config_lib.TrainConfig) -> None:
    """Trains, then reports; see the module for the exit codes."""
    # Imported once the command line is known to be good: these take a second.
    from experiments import result
    from seqjax.training import loop
    from seqjax.training import rows

    workdir = absl_flags.FLAGS.workdir
    try:
        outcome = loop.run(config, workdir)
        if outcome.exit_code:
            # A compilation may still run in a thread; an ordinary exit
            # would wait for it longer than a scheduler does.
            sys.stdout.flush()
            os._exit(outcome.exit_code)
        result.show(config, outcome, workdir)
    except rows.NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_NONFINITE)
    except loop.BAD_INPUT as error:
        flags.fail(str(error))


if __name__ == "__main__":
    jax.config.config_with_absl()
    app.run(main, flags_parser=flags.parser(config_lib.TrainConfig))
