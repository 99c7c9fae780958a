import struct
import tempfile
from pathlib import Path

import torch
from mistakes import Call, free, ok, words

from ponderlearn import data

FOLDER = Path(tempfile.mkdtemp())
OFF = FOLDER / "corner.off"
OFF.write_text("OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n")
generator = lambda: torch.Generator().manual_seed(1)
labels = lambda: ok(torch.arange(12) % 3, "entry past the end", "bool", "width")
corner = lambda: data.read_off(OFF)


def _write(name, *shape):
    head = struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape)
    size = int(torch.tensor(shape).prod())
    (FOLDER / name).write_bytes(head + bytes(i % 10 for i in range(size)))


for part, n in (("train", 30), ("t10k", 10)):
    _write(f"{part}-images-idx3-ubyte", n, 28, 28)
    _write(f"{part}-labels-idx1-ubyte", n)


def first(make):
    "The batch of step 1."
    drawn_by = generator()
    return make.then(lambda batches: batches(1, drawn_by))


EXAMPLES = {
    "check_range": lambda: Call(
        data.check_range,
        x=free(torch.rand(3, 4), "half", "float64"),
        argument=words("x"),
        low=ok(-1.0, -1, 0, 1.5, 10**30),
        high=ok(2.0, -1, 0, 1.5, 10**30),
    ),
    "check_images": lambda: Call(
        data.check_images,
        x=ok(torch.rand(2, 1, 4, 4), "axes swapped", "width"),
        argument=words("x"),
    ),
    "check_labels": lambda: Call(
        data.check_labels,
        y=ok(labels().value, "width"),
        argument=words("y"),
        n_classes=ok(3, 10**30),
    ),
    "stratified_split": lambda: Call(
        data.stratified_split,
        labels=labels(),
        sizes=ok((3, 2), "entry less", "empty"),
        seed=ok(1, 0),
    ),
    "read_idx": lambda: Call(data.read_idx, path=FOLDER / "t10k-labels-idx1-ubyte", limit=1000),
    "mnist": lambda: Call(data.mnist, folder=FOLDER, size=14, checksum=False),
    "Vocabulary.encode": lambda: Call(data.Vocabulary("abc").encode, text=words("abba")),
    "Vocabulary.decode": lambda: Call(
        data.Vocabulary("abc").decode, ids=ok(torch.tensor([1, 2, 2, 1]), "width")
    ),
    "vocabulary": lambda: Call(data.vocabulary, text=words("a book"), n=3),
    "read_off": lambda: Call(data.read_off, path=OFF, limit=1000),
    "sample_surface": lambda: Call(
        data.sample_surface,
        points=ok(corner()[0], "meta"),  # all goes to the CPU
        faces=ok(corner()[1], "rows", "meta"),
        n_points=3,
        seed=ok(1, 0),
    ),
    "point_clouds": lambda: Call(
        data.point_clouds, n_points=4, sizes=(8, 8, 8), noise=ok(0.1, 0, 1.5, 10**30), seed=ok(1, 0)
    ),
    "minibatches": lambda: first(
        Call(
            data.minibatches,
            tensors=ok((torch.rand(6, 2), torch.arange(6)), "entry less", "width inside"),
            batch_size=3,
            seed=ok(1, 0),
        )
    ),
    "windows": lambda: first(
        Call(
            data.windows,
            ids=ok(torch.arange(20), "entry -1", "entry past the end", "width"),
            batch_size=3,
            length=4,
        )
    ),
    "flip_labels": lambda: Call(
        data.flip_labels,
        labels=labels(),
        rate=ok(0.5, 0, 1),
        kind="next",
        n_classes=ok(3, 10**30),
        generator=generator(),
    ),
    "noisy_task": lambda: Call(
        data.noisy_task,
        source=ok(data.digits(), "entry less"),
        rate=ok(0.5, 0, 1),
        kind="next",
        seed=ok(1, 0),
    ),
    "hue_to_rgb": lambda: Call(data.hue_to_rgb, hue=free(torch.rand(4))),
    "render_sprites": lambda: Call(
        data.render_sprites,
        factors=ok(torch.rand(4, 6), "half", "float64"),
        shape=torch.arange(4) % 3,
        size=8,
    ),
    "sprites": lambda: Call(
        data.sprites,
        n=4,
        size=8,
        ranges=ok({"size": (0.25, 0.5)}, None, "empty"),
        generator=generator(),
    ),
    "noisy_digits": lambda: Call(data.noisy_digits, rate=ok(0.5, 0, 1), kind="next", seed=ok(1, 0)),
}
ALLOWED = {}
