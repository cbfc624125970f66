"""python -m paddle_maml: the commands beside train.py and eval.py; without arguments it lists them."""

import sys

from .commands.cli import main

sys.exit(main())
