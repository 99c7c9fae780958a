import torch
import torch.nn.functional as F
from mistakes import Call, free, ok

from ponderlearn.contrastive import alignment_uniformity as au


def unit(n=4, d=3, seed=0):
    "Unit vectors (n, d)."
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


EXAMPLES = {
    "align_loss": lambda: Call(
        au.align_loss, x=unit(), y=unit(seed=1), alpha=ok(2.0, 1.5, 10**30), reduction="mean"
    ),
    "uniform_loss": lambda: Call(
        au.uniform_loss, x=unit(), other=unit(5, seed=1), t=ok(2.0, 1.5, 10**9), check=False
    ),
    "uniform_loss, one": lambda: Call(au.uniform_loss, x=free(unit()), t=ok(2.0, 1.5, 10**9)),
    "uniform_optimum": lambda: Call(au.uniform_optimum, t=ok(2.0, 1.5), dim=ok(5), n=3),
    "AlignUniformLoss": lambda: Call(
        au.AlignUniformLoss,
        align_weight=ok(1.0, 0, 1.5, 10**30),
        uniform_weight=ok(0.5, 0, 1.5, 10**30),
        alpha=ok(2.0, 1.5, 10**30),
        t=ok(2.0, 1.5, 10**9),
        normalize=True,
    ).then(lambda made: made(unit(), unit(seed=1))),
    "AlignUniformLoss.forward": lambda: Call(
        au.AlignUniformLoss(uniform_weight=0.5), x=unit(), y=unit(seed=1)
    ),
    "alignment_uniformity": lambda: Call(
        au.alignment_uniformity,
        x=unit(),
        y=unit(seed=1),
        alpha=ok(2.0, 1.5, 10**30),
        t=ok(2.0, 1.5, 10**9),
        chunk_size=ok(3, 10**30),
    ),
    "contrastive_limit": lambda: Call(
        au.contrastive_limit, x=unit(), y=unit(seed=1), temperature=ok(0.5, 1.5, 10**30)
    ),
}
WITHOUT, ALLOWED = {}, {}
