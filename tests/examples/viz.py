import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from mistakes import Call, ok, words

from ponderlearn import viz


def axes():
    plt.close("all")
    return plt.figure().subplots()


def draw(x):
    return Figure(figsize=(0.3, 0.3), facecolor=(x / 20, 0, 0))


EXAMPLES = {
    "look": lambda: Call(viz.look, dpi=ok(100, 1.5, 10**30)),
    "dots": lambda: Call(
        viz.dots,
        ax=axes(),
        groups=ok([torch.rand(3), torch.rand(3)], "half inside"),
        labels=["a", "b"],
        colors=["red", "blue"],
        paired=True,
        horizontal=True,
        level=0.9,
    ),
    "band": lambda: Call(
        viz.band,
        ax=axes(),
        x=torch.arange(4.0),
        ys=ok(torch.rand(3, 4), "int", "bool"),
        label=words("a"),
        color="red",
        points=True,
        level=0.9,
    ),
    "image_grid": lambda: Call(
        viz.image_grid,
        images=torch.rand(3, 4, 5),
        titles=["a", "b", "c"],
        n_columns=2,
        vmin=ok(0.0, -1, 0),
        vmax=ok(1.0, 1.5, 10**30),
        cmap="gray",
        size=ok(1.0, 1.5),
    ).then(lambda fig: [image.get_clim() for ax in fig.axes for image in ax.images]),
    "frames": lambda: Call(
        viz.frames,
        draw=draw,
        x=ok(list(range(12)), "None inside"),
        alt=lambda x: f"Red, {x} of 20.",
        x_label=words("red"),
        start=ok(2, 0),
        dpi=20,
    ).then(lambda box: box.still),
}
ALLOWED = {}
