"""The same episodes, weights and gradient for every framework: `python -m paddle_maml interchange`.

docs/interchange.md describes the format; docs/readers has programs that read it and know nothing of this
library.

    format.py       the files of an export and of a trace: written, read, checked
    export.py       from settings to an export
    trace.py        this library's own trace of an export
    verify.py       a trace held against ours
    comparison.py   many traces as one table and one picture
    layouts.py      weights as PyTorch, JAX and the competition lay them out
"""
