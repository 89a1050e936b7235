"""Turns the IDX files of MNIST and its kin into train.tar and test.tar, tars of class folders.

    python benchmarks/idx_to_tar.py FOLDER OUT [--classes tshirt trouser …]

FOLDER holds train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the same of t10k. Debian's package
dataset-fashion-mnist has those of Fashion-MNIST (MIT licence) in /usr/share/datasets/fashion-mnist.
"""

import argparse
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes: two zeros, the type, the number of axes, their lengths, the values."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def main():
    """Writes both tars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", nargs="+", help="names of the labels 0, 1, …; default: the numbers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part, name in (("train", "train.tar"), ("t10k", "test.tar")):
        images, labels = (
            read_idx(options.folder / f"{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
        )
        with tarfile.open(options.out / name, "w") as archive:
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG")
                member = tarfile.TarInfo(f"{options.classes[label] if options.classes else label}/{number:05}.png")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)


if __name__ == "__main__":
    main()
