"""python -m paddle_maml episode: a picture of an episode and of what weights answer."""

from __future__ import annotations

from ..engine.analysis import episode_strip
from ..engine.assembly import (
    choose_device,
    evaluation_episodes,
    load_images,
    make_learner,
    own_network_may_fail,
    require_classes,
    settings_for,
)
from ..engine.provenance import find_weights, look_up
from ..engine.weights import load_weights
from ..errors import UserError
from ..files import write_whole
from ..report.pictures import COLOURS, png


def run(pretrained: str | None, weights: str | None, number: int, path: str, given: dict) -> None:
    """Draw test episode `number`, as `given` settings change those of the weights' run, into a PNG file."""
    found, origin = look_up(pretrained)[:2] if pretrained else find_weights(weights)
    settings = settings_for(origin and origin.settings, given)
    if settings.dataset == "sinusoid":
        raise UserError("--dataset is sinusoid, which has no images: name weights of a classifier.")
    if settings.n_way > len(COLOURS):
        raise UserError(
            f"--n-way is {settings.n_way}, but a picture has colours for {len(COLOURS)} classes: name other "
            "weights."
        )
    with own_network_may_fail(settings):
        choose_device(settings)
        images = load_images(settings, announce=print)[0]["test"]
        require_classes(settings, {"test": images}, "add classes")
        learner = make_learner(settings, images)
        load_weights(learner, found)
        strip = episode_strip(learner, evaluation_episodes(settings, images), number, settings.steps_at_test)
    write_whole(path, png(strip))
    print(f"Written: {path}")
