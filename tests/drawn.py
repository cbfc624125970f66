"""Characters as a user has them: files of drawings, in folders named by label."""

from pathlib import Path

from PIL import Image

from paddle_maml.data.synthetic import draw_synthetic


def drawings(characters=5):
    """uint8 (characters, 20 drawers, 105, 105), ink black on white."""
    return draw_synthetic(1, characters, image_size=105).images[:, :, 0]


def write_folder(folder, images, labels="abcde", form=".png", change=lambda image: image):
    """Write images (classes, N, H, W) as FOLDER/LABEL/NUMBER.FORM; returns the folder's path."""
    for label, of_class in zip(labels, images):
        place = Path(folder, label)
        place.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(of_class):
            Image.fromarray(change(image)).save(place / f"{number:02d}{form}")
    return str(folder)
