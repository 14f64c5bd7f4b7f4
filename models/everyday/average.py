"""Averages the weights of several runs of one model (model soups, Wortsman et al., arXiv:2203.05482).

python average.py --out MIXED.pt FOLDER=0.4 RUN/checkpoint.pt=0.35 OTHER/checkpoint.pt=0.25

Each is a folder that `export.py` or `vitscope models shrink` wrote, or a checkpoint of train.py, one at least. Only the
classifier of `everyday` is kept.
"""

import argparse
from pathlib import Path

import torch

from vit import Vit

HEAD = "everyday"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="PATH=SHARE")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    mixed, names = {}, None
    for run in args.runs:
        path, share = run.rsplit("=", 1)
        if Path(path).is_dir():
            weights = Vit.of_folder(Path(path), HEAD).state_dict()
        else:
            kept = torch.load(path)
            weights, names = kept["average"], kept["names"]
        for name, tensor in weights.items():
            if not name.startswith("out.") or name.startswith(f"out.{HEAD}."):
                mixed[name] = mixed.get(name, 0) + float(share) * tensor
    torch.save({"average": mixed, "names": names}, args.out)


main()
