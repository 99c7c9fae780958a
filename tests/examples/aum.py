import torch
from mistakes import Call, ok

from ponderlearn.robust import aum

B, C, N = 4, 3, 9
logits = lambda: torch.randn(B, C)
target = lambda: torch.arange(B) % C
where = lambda: torch.tensor([7, 0, 3, 5])
areas = lambda: torch.linspace(-2, 3, N)
generator = lambda: torch.Generator().manual_seed(1)


def started():
    "An accumulator in its second epoch, with one batch."
    made = aum.AUM(N)
    made.end_epoch()
    made.update(logits(), target(), where())
    return made


EXAMPLES = {
    "margin": lambda: Call(aum.margin, logits=ok(logits(), "width"), target=target()),
    "AUM": lambda: Call(aum.AUM, n_samples=N, skip_first=ok(1, 0)),
    "AUM.update": lambda: Call(started().update, logits=logits(), target=target(), indices=where()),
    "AUM.merge": lambda: Call(started().merge, other=started()),
    "AUM.set_extra_state": lambda: Call(started().set_extra_state, state={"epoch": 3}),
    "threshold_samples": lambda: Call(
        aum.threshold_samples, n_samples=N, n_classes=2, n_sets=2, generator=generator()
    ),
    "with_threshold_labels": lambda: Call(
        aum.with_threshold_labels,
        labels=target(),
        indices=ok(torch.tensor([1, 3]), "width", "rows"),
        n_classes=3,
    ),
    "aum_threshold": lambda: Call(
        aum.aum_threshold,
        aum=ok(areas(), "nan"),
        indices=ok(where(), "width", "rows"),
        q=ok(0.9, 0, 1),
        kind="rank",
    ),
    "mislabeled_mask": lambda: Call(
        aum.mislabeled_mask,
        aums=[areas(), areas().flip(0)],
        thresholds=[0.5, 0.25],
        threshold_indices=[where(), torch.tensor([1, 2])],
        combine="any",
    ),
}
ALLOWED = {}
