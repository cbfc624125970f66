"""A small export, for the tests of interchange."""

from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.interchange.export import export

SMALL = {
    "dataset": "synthetic",
    "n_way": 3,
    "k_query": 2,
    "test_k_query": 3,
    "inner_steps": 2,
    "meta_batch": 2,
    "width": 4,
    "test_episodes": 5,
    "meta_lr_schedule": "cosine",
    "rotations": True,
    "device": "cpu",
    "seed": 3,
}


def make(folder, iterations, dtypes, orders=(1, 2), **changes):
    settings = settings_from_preset("omniglot-5way-1shot", **{**SMALL, "iterations": iterations, **changes})
    export(settings, list(orders), list(dtypes), folder, announce=lambda line: None)
    return folder
