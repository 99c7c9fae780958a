"""AttFind's effects with prefix reuse and screening, beside the exhaustive loop.

The loop is the released program's structure, written anew: one coordinate and direction after the
other, the whole generator each time. "one image at a time" is how the program does it; "all images
at once" is kinder to it. The network is trained first, as an untrained one has no coordinates that
stand out. Screened are as few coordinates as give the same ten attributes (a quarter of them, a
third, two fifths or half), which is looked at before the clock starts.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/stylex.py [timed runs of each, 9]
"""

import sys
from functools import partial

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn

from ponderlearn.data import minibatches, sprites
from ponderlearn.explain.stylex import (
    ImageEncoder,
    attfind,
    condition,
    style_effects,
    style_range,
    train_stylex,
)
from ponderlearn.generative.gan import ResidualDiscriminator, StyleGenerator
from ponderlearn.training import fit

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 9
STEPS, RANGES = 300, {"hue": (0.0, 0.66), "size": (0.25, 0.5), "rotation": (0.0, 0.0)}


def trained_classifier(x, y):
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    layers += [nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)]
    net = nn.Sequential(*layers)
    batches = minibatches((x, y), 64)

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    fit(net, loss, batches, steps=500, lr=3e-3, bar=False)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def exhaustive(net, classifier, w, lo, hi, at_once: bool):
    "Effects (N, 2, K) on the probability of class 1."
    effects = []
    for part in w.split(len(w) if at_once else 1):
        styles = net.styles(part)
        before = classifier(net(styles=styles)).softmax(1)[:, 1]
        rows = torch.empty(len(part), 2, styles.shape[1])
        for j in range(styles.shape[1]):
            for d, end in enumerate((lo, hi)):
                moved = styles.clone()
                moved[:, j] = end[j]
                rows[:, d, j] = classifier(net(styles=moved)).softmax(1)[:, 1] - before
        effects.append(rows)
    return torch.cat(effects)


def measure(channels: tuple, n: int) -> list[dict]:
    "Rows for one trained generator."
    torch.manual_seed(0)
    found = sprites(3000, size=16, ranges=RANGES, generator=torch.Generator().manual_seed(0))
    y = (found.factors[:, 1] / 0.25 + found.factors[:, 5] / 0.4 > 2).long()
    classifier = trained_classifier(found.x, y)
    net, E = StyleGenerator(26, channels), ImageEncoder(3, 24)
    judge = ResidualDiscriminator(channels[::-1], 3, 2)
    E, net, _ = train_stylex(
        E, net, judge, classifier, found.x, steps=STEPS, lr=3e-3, classifier_weight=0.3
    )
    with torch.no_grad():
        prob = classifier(found.x).softmax(1)
        rows = (prob[:, 0] > 0.5).nonzero()[:n, 0]
        w = condition(E(found.x[rows]), prob[rows])
        ends = style_range(net, condition(E(found.x), prob))
    K = net.n_styles
    full = {a[:2] for a in attfind(exhaustive(net, classifier, w, *ends, True), 10)}

    def screened(screen, part=w):
        return style_effects(net, classifier, part, *ends, target=1, screen=screen).effects

    def finds_the_same(screen) -> bool:
        return {a[:2] for a in attfind(screened(screen), 10)} == full

    screen = next(m for m in (K // 4, K // 3, 2 * K // 5, K // 2) if finds_the_same(m))
    table = []
    for n_rows, at_once, tried in ((n, True, None), (n, True, screen), (n // 4, False, screen)):
        part = w[:n_rows]
        ours, loop = partial(screened, tried, part), partial(exhaustive, net, classifier, part)
        loop = partial(loop, *ends, at_once)
        found, wanted = ours(), loop()
        assert torch.allclose(found[found != 0], wanted[found != 0], atol=1e-4)
        timed = interleaved(ours, loop, repeats=REPEATS, warmup=1)
        how = "all coordinates" if tried is None else f"{tried} screened"
        beside = f"loop, {'all images' if at_once else 'one image'} at a time"
        table.append({"what": f"K = {K}, {n_rows} images, {how}", "beside": beside} | timed)
    return table


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for channels in ((16, 12, 8), (32, 24, 16)) for row in measure(channels, 32)]
    print(save("stylex", "exhaustive loop", rows))


if __name__ == "__main__":
    main()
