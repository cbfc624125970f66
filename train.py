"""Train MAML: `python train.py --preset quickstart`; `--help` lists every setting."""
import sys

from paddle_maml.cli import main_train

if __name__ == "__main__":
    sys.exit(main_train())
