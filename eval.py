"""Evaluate trained weights: `python eval.py --weights runs/quickstart`; `--help` lists every option."""
import sys

from paddle_maml.cli import main_eval

if __name__ == "__main__":
    sys.exit(main_eval())
