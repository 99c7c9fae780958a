import torch
from mistakes import Call, free, ok

from ponderlearn.contrastive import relic


def features(n=4, d=3, seed=0):
    "Features (n, d)."
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def log_probs(seed=0):
    "Rows of log-probabilities (4, 3)."
    return features(seed=seed).log_softmax(1)


def weight():
    return ok(2.0, 0, 1, 1.5, 10**30)


def tau():
    return ok(0.5, 1, 1.5, 10**30)


EXAMPLES = {
    "similarity_log_probs": lambda: Call(
        relic.similarity_log_probs,
        anchors=features(),
        candidates=features(5, seed=1),
        temperature=tau(),
        normalize=True,
    ),
    "similarity_log_probs, itself": lambda: Call(
        relic.similarity_log_probs,
        anchors=features(),
        candidates=features(seed=1),
        exclude_self=True,
    ),
    "divergence": lambda: Call(
        relic.divergence,
        log_p=log_probs(),
        log_q=log_probs(1),
        kind="kl",
        detach="reference",
        reduction="mean",
    ),
    "relic_loss": lambda: Call(
        relic.relic_loss,
        z1=features(),
        z2=features(seed=1),
        divergence_weight=weight(),
        temperature=tau(),
        pairing="swap",
        kind="jeffreys",
        detach="none",
        normalize=True,
        return_parts=False,
        chunk_size=ok(2, 10**30),
    ),
    "relic_loss, targets": lambda: Call(
        relic.relic_loss,
        z1=features(),
        z2=features(seed=1),
        target1=features(seed=2),
        target2=features(seed=3),
    ),
    "relic_loss, shared": lambda: Call(
        relic.relic_loss,
        z1=features(),
        z2=features(seed=1),
        reference=features(5, seed=2),
        pairing=ok("shared"),
    ),
    "RelicLoss": lambda: Call(
        relic.RelicLoss,
        divergence_weight=weight(),
        temperature=tau(),
        pairing="swap",
        kind="kl",
        detach="reference",
        normalize=True,
    ).then(lambda made: made(features(), features(seed=1))),
    "RelicLoss, in tiles": lambda: Call(relic.RelicLoss, chunk_size=ok(2, 10**30)).then(
        lambda made: made(features(), features(seed=1))
    ),
    "RelicLoss.forward": lambda: Call(
        relic.RelicLoss(pairing="shared"),
        z1=features(),
        z2=features(seed=1),
        target1=features(seed=2),
        target2=features(seed=3),
        reference=features(5, seed=4),
    ),
    "coarsen": lambda: Call(
        relic.coarsen, log_probs=log_probs(), groups=torch.tensor([0, 0, 1]), n_groups=ok(2, 3)
    ),
    "is_refinement": lambda: Call(
        relic.is_refinement,
        fine=ok(torch.tensor([0, 0, 1]), "entry -1", "entry past the end"),
        coarse=ok(torch.tensor([5, 5, 5]), "entry -1", "entry past the end"),
    ),
    "fisher_ratio": lambda: Call(
        relic.fisher_ratio,
        features=ok(features(5), "width"),
        labels=torch.tensor([0, 1, 0, 1, 1]),
        n_classes=2,
        reduction="mean",
    ),
    "linear_r2": lambda: Call(
        relic.linear_r2,
        z_train=features(6),
        s_train=features(6, 2, 1),
        z_test=features(5, seed=2),
        s_test=features(5, 2, 3),
        l2_weight=ok(0.1, 0, 1, 1.5, 10**30),
    ),
    "colorize": lambda: Call(
        relic.colorize,
        images=ok(torch.rand(2, 1, 4, 3), "width", "axes swapped"),
        hue=torch.rand(2),
    ),
    "spurious_hues": lambda: Call(
        relic.spurious_hues,
        labels=free(torch.tensor([0, 1, 2])),
        correlation=ok(0.5, 0, 1),
        n_classes=ok(4, 10**30),
        offset=ok(1, 0, -1, 10**30),
        jitter=ok(0.03, 0, 1, 1.5, 10**30),
        generator=torch.Generator().manual_seed(0),
    ),
}
WITHOUT, ALLOWED = {}, {}
