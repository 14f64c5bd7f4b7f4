"""Photographs of things cut out of their surroundings, to stand before any other: the stamps of Tux Paint.

`apt-get download tuxpaint-stamps-default` (2022.06.04-1), unpacked: usr/share/tuxpaint/stamps.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import pictures

# File names (without .png) or folders of what is a class. The rest of FOLDERS is of no class.
CLASSES = {
    "bird": "adelaide-rosella albino_peahen blackbird crow cuckoo helmeted_guineafowl lark magpie nandou ostrich owl "
            "peacock quetzal rainbow-lorikeet tucan turkey vulture guineafowl crowned_crane heron_greatblue "
            "heron_greatblue_flying pelican bluebird",
    "pigeon": "pigeon", "seabird": "silver-gull seagull", "chicken": "hen rooster chicken_profile", "goose": "gander",
    "penguin": "little-penguin penguin magellanic_penguin", "flamingo": "pink_flamingo",
    "fish": "animals/fish/", "bee": "bee wasp", "ape": "animals/mammals/apes/",
    "bear": "animals/mammals/bears/", "camel": "animals/mammals/camel/", "dog": "animals/mammals/dogs/",
    "banana": "banana", "apple": "apple_fuji apple_granny_smith apple_green apple_red apple_sierra_beauty",
    "avocado": "avocado", "kiwi": "kiwi", "lemon": "lemon", "mango": "mango", "orange": "orange orange_seville mandarine",
    "pear": "pear", "pineapple": "pineapple", "pomegranate": "pomegranate", "lime": "sliced_lime",
    "strawberry": "strawberry Strawberry2", "pizza": "pizza", "carrot": "carrot", "eggplant": "eggplant",
    "garlic": "garlic garlics", "mushroom": "mushroom cep cep-1 cep-2", "onion": "onion", "potato": "potato",
    "bell_pepper": "pepper yellowpepper", "tomato": "tomato", "sweet_potato": "yam", "binoculars": "binoculars",
    "camera": "camera_35mm", "drum": "drum_tomtom_floor drumkit", "guitar": "guitar2 guitar_classical guitar_electric "
    "guitar_electric_bass", "scissors": "scissors_small_closed scissors_small_open", "cup": "mug",
    "jug": "pitcher_small", "teapot": "teapot", "wrench": "wrench wrench_adjustable wrench_plumbers", "syringe": "syringe",
    "basketball": "basketball", "soccer_ball": "soccer football", "rose": "rose", "car": "beetle sedan sportscar2 "
    "sedan_police indycar", "truck": "truck firetruck garbagetruck dumper", "tractor": "wheel_tractor",
    "airplane": "747 f22_raptor", "bus": "green_korean_bus", "hat": "clothes/hats/", "shirt": "t_shirt t_poloshirt",
    "trousers": "t_pants", "sock": "t_sock", "t_shirt": "t_tshirt", "jacket": "t_jacket", "bucket": "garbagecan",
}
FOLDERS = ("animals", "clothes", "food", "hobbies", "household", "medical", "plants", "sports", "vehicles", "seasonal/easter/bluebird")
# What else is here may be of a class.
UNSURE = ("insects", "amphibians", "toys", "shellfish", "lizards", "trees", "vehicles", "flowers", "rodents", "marsupials")
# By the first letters of a file's name.
BY_NAME = {"bison": "bison", "elephant": "elephant", "lion": "lion", "koala": "koala", "kangaroo": "kangaroo", "pig": "pig",
           "bull": "cow", "cow": "cow", "rhino": "rhinoceros", "dolphin": "dolphin", "beaver": "beaver"}


def read(path):
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((260, 260), Image.BICUBIC)
    return image


def found(root, names):
    """(pictures with transparency, numbers of their classes); pictures.NOTHING for what is in no class."""
    of = {word: name for name, words in CLASSES.items() for word in words.split()}
    folders = {word: name for word, name in of.items() if word.endswith("/")}
    images, labels = [], []
    for path in sorted(root.rglob("*.png")):
        inside = path.relative_to(root).as_posix()
        if "cartoon" in inside or not inside.startswith(FOLDERS):
            continue
        of_folder = [name for folder, name in folders.items() if inside.startswith(folder) and "toys" not in inside]
        by_name = [name for word, name in BY_NAME.items() if path.stem.lower().startswith(word)]
        name = ([of[path.stem]] if path.stem in of else of_folder or by_name or [None])[0]
        if name is None and any(word in inside for word in UNSURE):
            continue
        images.append(read(path))
        labels.append(names.index(name) if name in names else pictures.NOTHING)
    return images, np.array(labels)


def weights(labels, more):
    """How often each is drawn: three in ten are of no class, as many of the classes in `more`."""
    size = np.array([(labels == label).sum() for label in labels])
    nothing = labels == pictures.NOTHING
    often = np.isin(labels, list(more))
    weight = 1 / np.sqrt(size)
    for chosen, share in ((nothing, 0.3), (often, 0.3), (~nothing & ~often, 0.4)):
        weight[chosen] *= share / weight[chosen].sum()
    return weight / weight.sum()


def before(stamp, ground, px, rng):
    """`stamp` at any size, near or far, before a square of `px`."""
    # Near: only part of it is inside.
    scale = np.exp(rng.uniform(np.log(0.45), np.log(1.7)))
    shape = np.exp(rng.uniform(np.log(0.65), np.log(1.5)) / 2)
    side = scale * px / max(stamp.size)
    w, h = max(8, int(stamp.width * side * shape)), max(8, int(stamp.height * side / shape))
    small = stamp.resize((w, h), Image.BICUBIC)
    if rng.random() < 0.5:
        small = small.transpose(Image.FLIP_LEFT_RIGHT)
    if rng.random() < 0.3:
        small = small.rotate(rng.uniform(-20, 20), Image.BICUBIC, expand=True)
    image = Image.fromarray(ground).convert("RGB")
    if rng.random() < 0.4:
        # Other colors, or nearly white.
        a = np.asarray(small).copy()
        if rng.random() < 0.5:
            a[..., :3] = a[..., rng.permutation(3)]
        else:
            grey = a[..., :3].mean(2, keepdims=True)
            light = rng.uniform(0.3, 0.7)
            a[..., :3] = (grey + 0.2 * (a[..., :3] - grey)) * (1 - light) + 255 * light
        small = Image.fromarray(a)
    # At least two thirds of it, or as much as fits, is inside.
    x = int(rng.uniform(-0.25 * w, px - 0.75 * w)) if w < px else int(rng.uniform(px - w, 0) - 0.1 * rng.uniform(-1, 1) * w)
    y = int(rng.uniform(-0.25 * h, px - 0.75 * h)) if h < px else int(rng.uniform(px - h, 0) - 0.1 * rng.uniform(-1, 1) * h)
    image.paste(small, (x, y), small)
    return np.asarray(image)
