"""Pictures that are none of CIFAR-10's ten classes, in sets by how far off they are, for `calibrate.py`.

The photographs come from Debian packages; nothing of them is committed. To have them:

    mkdir outside && cd outside
    apt-get download tuxpaint-stamps-default mate-backgrounds ukui-wallpapers lomiri-wallpapers-16.04 \
        lomiri-wallpapers-20.04
    for f in *.deb; do dpkg -x $f .; done
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from sqzoo.images.opener import open_image
from sqzoo.images.walk import image_files

_STAMPS = "usr/share/tuxpaint/stamps"
_OBJECTS = ("food", "clothes", "household", "hobbies", "medical", "plants", "sports", "space", "symbols/money",
            "symbols/chess", "town/houses", "town/monuments", "town/roadsigns")  # fmt: skip
_ANIMALS = ("animals/fish", "animals/insects", "animals/lizards", "animals/shellfish", "animals/dinosaur",
            "animals/marsupials", "animals/mammals")  # fmt: skip
# Cats, dogs, deer and horses in a wide sense, and what is drawn as one.
_CLASSES = {"cats", "dogs", "deer", "equines", "squirrel.png", "teddy_bear.png", "edward_bear.png", "cartoon"}
_WALLPAPERS = "usr/share/backgrounds"
_WITH_CLASSES = ("free_by", "friends_by", "Kleiber", "Elephants_")  # a bird, dogs, a bird, doubles
_CROPS = 10
SIDE = 96


def sets(folder: Path | None) -> dict[str, tuple[str, list[Image.Image]]]:
    """Return by name what a set is and its pictures; `folder` holds the unpacked packages (None: noise alone)."""
    found = {"synthetic": ("noise, gradients, stripes and flat colours, drawn by this script", _synthetic())}
    if folder:
        stamps, walls = folder / _STAMPS, folder / _WALLPAPERS
        objects, animals = (_stamps(stamps, names) for names in (_OBJECTS, _ANIMALS))
        found |= {
            "objects": (
                "photographs and some drawings of food, clothes, plants, tools, buildings and the like on white, Tux "
                "Paint's stamps",
                objects,
            ),
            "other animals": (
                "animals that are none of the classes (no cats, dogs, deer or horses in a wide sense) on white, Tux "
                "Paint's stamps",
                animals,
            ),
            "scenes": (f"{_CROPS} square crops each of wallpapers: landscapes, flowers, textures, art", _crops(walls)),
        }
    return found


def _stamps(root: Path, folders: tuple[str, ...]) -> list[Image.Image]:
    files = [f for name in folders for f in image_files(root / name) if not _CLASSES & set(f.relative_to(root).parts)]
    pictures = [_small(open_image(f)) for f in files if not f.stem.endswith("_mirror")]
    return [p for p in pictures if min(p.size) > 32]  # a smaller one is not shrunk to 32 pixels


def _crops(root: Path) -> list[Image.Image]:
    rng, crops = np.random.default_rng(0), []
    for file in image_files(root):
        if file.name.startswith(_WITH_CLASSES):
            continue
        picture = open_image(file, 4 * SIDE)
        for _ in range(_CROPS):
            side = int(min(picture.size) * rng.uniform(0.25, 1))
            left, top = (int(rng.integers(0, full - side + 1)) for full in picture.size)
            crops.append(_small(picture.crop((left, top, left + side, top + side))))
    return crops


def _small(picture: Image.Image) -> Image.Image:
    picture.thumbnail((4 * SIDE, 4 * SIDE))  # so that hundreds fit in memory
    return picture


def _synthetic(each: int = 100) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    row, column = np.mgrid[0:SIDE, 0:SIDE] / SIDE

    def noise() -> np.ndarray:
        return rng.integers(0, 256, (SIDE, SIDE, 3))

    def coarse_noise() -> np.ndarray:
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    def blurred_noise() -> np.ndarray:
        return np.asarray(Image.fromarray(noise().astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(1, 6))))

    def mixed(share: np.ndarray) -> np.ndarray:
        one, other = rng.integers(0, 256, (2, 3))
        return share[..., None] * one + (1 - share[..., None]) * other

    def gradient() -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi)
        share = np.cos(angle) * row + np.sin(angle) * column
        return mixed((share - share.min()) / np.ptp(share))

    def stripes() -> np.ndarray:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 12)
        return mixed((np.sin(2 * np.pi * waves * (np.cos(angle) * row + np.sin(angle) * column)) > 0).astype(float))

    def flat() -> np.ndarray:
        return mixed(np.ones_like(row))

    kinds: tuple[Callable[[], np.ndarray], ...] = (noise, coarse_noise, blurred_noise, gradient, stripes, flat)
    return [Image.fromarray(kind().astype(np.uint8)) for kind in kinds for _ in range(each)]
