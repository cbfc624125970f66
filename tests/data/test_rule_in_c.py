"""The written rule of the episodes is complete: docs/episodes.c, which follows it, gives the same arrays."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_episodes import GOLDEN, numbered_images
from tiny_run import ROOT

from paddle_maml.data.episodes import EpisodeBuilder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("c") / "episodes"
    source = str(Path(ROOT, "docs", "episodes.c"))
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", str(path), source], check=True)
    return path


def built(program, folder, images, *numbers):
    """The bytes of an episode; numbers as the program takes them after the images."""
    path = folder / "images"
    path.write_bytes(images.tobytes())
    arguments = [path, *images.shape[:4], *numbers]
    return subprocess.run([program, *map(str, arguments)], check=True, capture_output=True).stdout


@pytest.mark.parametrize("rotations", [False, True])
def test_c_gives_the_golden_digests(program, tmp_path, rotations):
    digest, images = hashlib.sha256(), numbered_images()
    for seed in (7, 2**64 - 1):
        for index in (0, 1, 10**6):
            digest.update(built(program, tmp_path, images, 5, 2, 3, int(rotations), seed, index))
    assert digest.hexdigest() == GOLDEN[rotations]


def test_c_gives_episodes_of_colour_images(program, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (7, 6, 3, 5, 5)).astype(np.uint8)
    expected = b"".join(array.tobytes() for array in EpisodeBuilder(images, 4, 1, 2, 3, rotations=True)[9])
    assert built(program, tmp_path, images, 4, 1, 2, 1, 3, 9) == expected


def test_c_refuses_what_it_cannot_build(program, tmp_path):
    images = numbered_images()
    with pytest.raises(subprocess.CalledProcessError) as error:
        built(program, tmp_path, images, 41, 1, 1, 0, 0, 0)
    assert error.value.returncode == 2 and b"too few" in error.value.stderr
