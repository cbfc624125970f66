"""What train.py does once its options are known: a run in this process, or in several."""

from __future__ import annotations

import os

from ..engine import assembly, checkpoint, provenance, run_folder, training
from ..engine.device import cores, gpu_count, select_device
from ..engine.processes import launched, run_processes
from ..engine.settings import Settings, settings_from_dict, settings_from_preset
from ..errors import UserError
from .running import run_command


def run(given: dict) -> int | None:
    """Train with the settings that are given, on this machine or as a member of a group of processes; returns
    the exit status of the processes that were started, None where there are none."""
    settings, continued = _settings(given)
    if launched():
        if settings.processes not in (None, 1):
            raise UserError(
                f"processes is {settings.processes}, but the launcher has started the processes already; "
                "leave it out."
            )
        return _train(settings)
    device = select_device(settings.device, announce=lambda line: None)
    processes = settings.processes or (cores() if device == "cpu" else 1)
    if processes == 1:
        return _train(settings)
    if device != "cpu" and (settings.device != "auto" or processes > gpu_count()):
        raise UserError(
            f"processes is {processes} with device {settings.device}, but each process takes a GPU of its "
            f"own and {gpu_count()} can be seen: use --device auto and as many processes at most."
        )
    # What can be refused is refused here, once, and the kernel is compiled and the images are cached before
    # all processes want them.
    run_folder.refuse_other_run(settings)
    if not continued:
        provenance.start_weights(settings)
    assembly.load_kernel(settings, device, announce=print)
    assembly.load_training_images(settings)
    return run_processes(train_member, (settings,), processes, device)


def train_member(settings: Settings) -> int:
    """What each process of a run with several processes does; returns its exit status."""
    return run_command(_train, settings)


def _train(settings):
    training.train(settings)


def _settings(given):
    """The settings of the run, and whether it continues one.

    What is not given anew is taken from the run, wherever its folder is now. Not the device, which depends on
    the machine; but the number of processes and the chunk, which decide in what order gradients are summed.
    """
    # Paths are stored with the run, which may be resumed from another folder.
    for name in ("data_dir", "start_from"):
        path = given.get(name)
        if path and os.path.exists(path) and path not in provenance.names():
            given = {**given, name: os.path.abspath(path)}
    settings = settings_from_preset(**given)
    newest = checkpoint.read_newest(settings.run_folder) if settings.resume else None
    if not newest:
        return settings.with_whole_path(), False
    stored = newest.settings
    assembly.require_own_network(stored, given)
    here = {"device": Settings.device, **({"processes": None} if launched() else {})}
    settings = settings_from_dict({**stored.as_dict(), **here, **given, "output": settings.run_folder})
    settings.refuse_without_effect(given)
    return settings.with_whole_path(), True
