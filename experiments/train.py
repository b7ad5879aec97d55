"""Trains a language model.

    python -m experiments.train --config=experiments/configs/NAME.py \
        --workdir=DIR [--config.FIELD=VALUE ...]

The same command resumes a run, or says that it is finished.  On many machines
it is started once on each, see ``seqjax.training.distributed``.

Exit codes: 0 done, 2 bad input, 3 a loss or gradient that is not finite, 75
stopped by SIGTERM or SIGINT, or by the death of a data worker, with everything
saved, 76 another process of the job has died.  After 75 and 76 run the same
command again.
"""

import functools
import os
import sys
import traceback

from seqjax.training import preemption

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_NONFINITE = 3
EXIT_PROCESS_LOST = 76


def main(flag: preemption.PreemptionFlag) -> None:
    """Reads the command line, then trains; exits with one of the codes."""
    # These imports take a second or two, and a signal that comes meanwhile
    # must find the flag: hence they are not at the top.
    from absl import app
    from absl import flags as absl_flags
    import jax

    from seqjax.training import config as config_lib
    from seqjax.training import distributed
    from seqjax.training import flags

    absl_flags.DEFINE_string("config", None, "Python file with get_config().")
    absl_flags.DEFINE_string("workdir", None, "Where the run is kept.")
    distributed.define_flags()
    jax.config.config_with_absl()
    app.run(
        functools.partial(train, flag=flag),
        flags_parser=flags.parser(config_lib.TrainConfig),
    )


def train(config, flag: preemption.PreemptionFlag) -> None:
    """Trains, then reports; see the module for the exit codes."""
    # Imported once the command line is known to be good: more seconds.
    from absl import flags as absl_flags
    import jax

    from experiments import result
    from experiments import starting
    from seqjax.training import background
    from seqjax.training import distributed
    from seqjax.training import flags
    from seqjax.training import loop
    from seqjax.training import rows
    from seqjax.training import setup
    from seqjax.training import workdir

    directory = absl_flags.FLAGS.workdir
    settings = distributed.settings()
    code = EXIT_DONE
    try:
        distributed.start(settings, lambda: flag.requested)
        setup.require_devices()
        distributed.check_devices(settings.expected_devices)
        distributed.watch(EXIT_PROCESS_LOST)
        config, initial = starting.resolve(config)
        with workdir.WorkdirLock(directory):
            outcome = loop.train(config, directory, flag, initial=initial)
            result.show(config, outcome, directory, lambda: flag.requested)
    except background.PreemptedError as stopped:
        if str(stopped):
            print(f"error: {stopped}", file=sys.stderr, flush=True)
        code = preemption.EXIT_PREEMPTED
    except rows.NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = EXIT_NONFINITE
    except loop.BAD_INPUT as error:
        code = flags.tell(str(error))
    except OSError as error:
        code = flags.tell(flags.of_the_system(error))
    except Exception as error:
        if not distributed.many():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):
            flags.tell(distributed.died(error))
            code = EXIT_PROCESS_LOST
        else:
            traceback.print_exc()
            code = EXIT_ERROR
    if flag.requested and code == EXIT_DONE:
        code = preemption.EXIT_PREEMPTED  # as was said when the signal came
    distributed.leave(wait=code not in (EXIT_DONE, EXIT_PROCESS_LOST))
    if flag.requested or (distributed.many() and code != EXIT_DONE):
        # A compilation may still run in a thread, or a wait for a process
        # that is gone; an ordinary exit would wait longer than a scheduler.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    signals = preemption.PreemptionFlag()
    signals.install()
    main(signals)
