"""Evaluate trained weights: `python eval.py --weights runs/quickstart`; `--help` lists every option."""

import signal
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # there is nothing to save yet, and no need for a traceback

    from paddle_maml.commands.cli import main_eval

    sys.exit(main_eval())
