import torch
from mistakes import Call, free, ok

from ponderlearn.architectures import ipt

# sizes all different: B = 3 images of 2 channels, 8 x 12 pixels; N = 5 tokens of 4 numbers
TASKS = {"denoise": 1, "sr2": 2}
big = 1.5, 10**30


def images(*size):
    return torch.rand(*size)


def generator():
    return torch.Generator().manual_seed(1)


def model(**how):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        sizes = {"channels": 4, "patch_size": 2, "image_size": 8, "num_layers": 1, "num_heads": 2}
        return ipt.IPT(TASKS, in_channels=2, **(sizes | how))


def baseline():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return ipt.ConvRestorer(TASKS, in_channels=2, channels=4, n_blocks=1)


def restored(model):
    x = images(3, 2, 8, 12)
    return [model.eval()(x, task) for task in model.tasks]


def enlarge(tiles):
    return tiles.repeat_interleave(2, 2).repeat_interleave(2, 3)


IMAGE = "axes swapped", "width"
EXAMPLES = {
    "gaussian_noise": lambda: Call(
        ipt.gaussian_noise,
        x=ok(images(3, 2, 8, 12), *IMAGE),
        sigma=ok(0.2, *big, 0),
        generator=generator(),
        clip=False,
    ),
    "gaussian_noise, levels": lambda: Call(
        ipt.gaussian_noise,
        x=ok(images(3, 2, 8, 12), *IMAGE),
        sigma=torch.tensor([0.1, 0.2, 0.3]),
        generator=generator(),
        clip=True,
    ),
    "bicubic_downsample": lambda: Call(
        ipt.bicubic_downsample, x=ok(images(3, 2, 8, 12), "axes swapped"), scale=2
    ),
    "synthetic_rain": lambda: Call(
        ipt.synthetic_rain,
        x=ok(images(3, 2, 8, 12), *IMAGE),
        density=ok(0.1, 0),
        length=5,
        angle=ok(15.0, 0, 1.5, -1),
        strength=ok(0.8, *big, 0),
        generator=generator(),
        clip=True,
    ),
    "synthetic_rain, angles": lambda: Call(
        ipt.synthetic_rain,
        x=ok(images(3, 2, 8, 12), *IMAGE),
        angle=ok((-20.0, 20.0), "first alone", "number"),
        generator=generator(),
    ),
    "rgb_to_y": lambda: Call(
        ipt.rgb_to_y, x=ok(images(2, 3, 8, 12), "axis more", "axis fewer", *IMAGE)
    ),
    "psnr": lambda: Call(
        ipt.psnr,
        pred=images(2, 3, 8, 12),
        target=images(2, 3, 8, 12),
        channel="y",
        data_range=ok(1.0, *big),
        border=ok(1, 0),
        quantize=True,
        reduction="none",
    ),
    "IPT": lambda: Call(
        ipt.IPT,
        tasks=ok(TASKS, "misspelt key"),
        in_channels=2,
        channels=4,
        patch_size=2,
        image_size=8,
        num_layers=1,
        num_heads=2,
        mlp_ratio=3,
        head_kernel=3,
        task_embedding="shared",
        cross_attention=True,
        normalize_memory=True,
        image_skip=False,
        mean=ok((0.4, 0.5), "first alone", "number"),
        dropout=ok(0.1, 0),
    ).then(restored),
    "IPT.forward": lambda: Call(
        model(), x=ok(images(3, 2, 8, 12), *IMAGE), task="sr2", return_tokens=True
    ),
    "ConvRestorer": lambda: Call(
        ipt.ConvRestorer,
        tasks=ok(TASKS, "misspelt key"),
        in_channels=2,
        channels=4,
        n_blocks=1,
        head_kernel=3,
        image_skip=True,
        mean=ok(0.4, *big, 0),
    ).then(restored),
    "ConvRestorer.forward": lambda: Call(baseline(), x=ok(images(3, 2, 8, 12), *IMAGE), task="sr2"),
    "patch_contrastive_loss": lambda: Call(
        ipt.patch_contrastive_loss,
        tokens=ok(images(3, 5, 4), "axes swapped", "width"),
        temperature=ok(0.5, *big),
        include_positive=True,
        negatives="all",
        max_tokens=ok(4, 10**30),
        chunk_size=ok(4, 10**30),
        generator=generator(),
    ),
    "restoration_loss": lambda: Call(
        ipt.restoration_loss,
        pred=free(images(3, 2, 8, 12)),
        target=images(3, 2, 8, 12),
        tokens=ok(images(3, 5, 4), "axes swapped", "width"),
        contrastive_weight=ok(0.1, *big, 0),
    ),
    "tiled_forward": lambda: Call(
        ipt.tiled_forward,
        model=enlarge,
        x=ok(images(3, 2, 8, 12), *IMAGE),
        tile=5,
        overlap=ok(2, 0),
        scale=2,
        batch_size=4,
        blend="linear",
    ),
}
WITHOUT = {}
ALLOWED = {}
