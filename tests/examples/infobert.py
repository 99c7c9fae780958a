from types import SimpleNamespace

import torch
from mistakes import Call, free, ok

from ponderlearn.language import infobert


def randn(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def mask():
    return torch.tensor([[True, True, True], [True, True, False]])


def critic(local_size=4, global_size=5):
    torch.manual_seed(0)
    return infobert.PairCritic(local_size, global_size, 6)


def generator():
    return torch.Generator().manual_seed(0)


def half_square(e):
    "A loss of embeddings (B, L, d), with its gradient."
    return SimpleNamespace(loss=e.square().sum() / 2, grad=e.detach())


def predict(tokens):
    "Logits (N, 2) of tokens (N, 3)."
    first = tokens.double().sum(1)
    return torch.stack([first, 5 - first], 1)


def example_loss(embeddings):
    "The task loss, local and sentence features of embeddings (2, 3, 4)."
    return embeddings.tanh().sum(), embeddings * 2, embeddings.sum(1)


def loss_forward():
    e = randn(2, 3, 4).requires_grad_()
    task, local, global_ = example_loss(e)
    torch.manual_seed(0)
    loss_fn = infobert.InfoBERTLoss(infobert.PairCritic(4, 4, 6))
    return Call(
        loss_fn,
        task_loss=task,
        embeddings=e,
        local=local,
        global_=global_,
        mask=mask(),
        anchors=torch.tensor([[True, False, True], [False, True, False]]),
        generator=generator(),
    )


EXAMPLES = {
    "gaussian_channel_bound": lambda: Call(
        infobert.gaussian_channel_bound,
        features=ok(randn(2, 3, 4), "width"),
        mask=mask(),
        sigma=ok(2.0, 1, 1.5, 10**30),
        kind="logdet",
    ),
    "club_upper_bound": lambda: Call(
        infobert.club_upper_bound,
        mean=randn(4, 2),
        logvar=randn(4, 2, seed=1),
        y=randn(4, 2, seed=2),
        n_samples=3,
        generator=generator(),
    ),
    "anchor_mask": lambda: Call(
        infobert.anchor_mask,
        grad_norm=ok(randn(2, 3).abs(), "nan"),
        mask=mask(),
        low=ok(0.5, 0),
        high=ok(0.9, 1),
        kind="official",
    ),
    "PairCritic": lambda: Call(
        infobert.PairCritic, local_size=4, global_size=5, hidden_size=6, positive=True
    ),
    "PairCritic.forward": lambda: Call(
        critic(), local=ok(randn(3, 4), "rows"), global_=ok(randn(2, 5, seed=1), "rows")
    ),
    "anchored_info": lambda: Call(
        infobert.anchored_info,
        local=randn(2, 3, 4),
        global_=randn(2, 5, seed=1),
        anchors=torch.tensor([[True, False, True], [False, True, False]]),
        critic=critic(),
        mask=mask(),
        max_pairs=ok(3, 10**30),
        negatives=ok("others"),
        generator=generator(),
    ),
    "perturbation_init": lambda: Call(
        infobert.perturbation_init,
        embeddings=ok(randn(2, 3, 4), "width"),
        mask=ok(mask(), None),
        magnitude=ok(0.1, 0, 1, 1.5, 10**30),
        norm="linf",
        generator=generator(),
    ),
    "perturbation_step": lambda: Call(
        infobert.perturbation_step,
        delta=randn(2, 3, 4),
        grad=randn(2, 3, 4, seed=1),
        step_size=ok(0.1, 0, 1, 1.5, 10**30),
        max_norm=ok(0.5, 1, 1.5, 10**30),
        norm="linf",
    ),
    "InfoBERTLoss": lambda: Call(
        infobert.InfoBERTLoss,
        critic=critic(),
        anchored_weight=ok(0.1, 0, 1, 1.5, 10**30),
        bottleneck_weight=ok(0.1, 0, 1, 1.5, 10**30),
        low=ok(0.5, 0),
        high=ok(0.9, 1),
        sigma=ok(2.0, 1, 1.5, 10**30),
        kind="official",
        max_pairs=ok(3, 10**30),
        negatives="others",
    ),
    "InfoBERTLoss.forward": loss_forward,
    "freelb_loss": lambda: Call(
        infobert.freelb_loss,
        loss_fn=half_square,
        embeddings=ok(randn(2, 3, 4), "width"),
        mask=mask(),
        n_steps=ok(2, 1),
        step_size=ok(0.1, 0, 1, 1.5, 10**30),
        magnitude=ok(0.1, 0, 1, 1.5, 10**30),
        max_norm=ok(0.5, 1, 1.5, 10**30),
        norm="linf",
        generator=generator(),
    ),
    "embedding_neighbors": lambda: Call(
        infobert.embedding_neighbors,
        vectors=free(randn(5, 3)),
        k=ok(2, 1),
        max_distance=ok(0.5, 0, 1, 1.5, 10**30),
        exclude=ok([1], "empty", "entry less"),
    ),
    "greedy_substitution_attack": lambda: Call(
        infobert.greedy_substitution_attack,
        predict=predict,
        tokens=torch.tensor([[1, 2, 0], [0, 1, 1]]),
        labels=torch.tensor([0, 1]),
        candidates=ok(torch.tensor([[1, 2], [0, 2], [0, 1]]), "width"),
        max_changes=ok(2, 0, 1, 10**30),
        mask=mask(),
        unknown_id=ok(0, 1, 2),
        protected=ok([2], "empty", "entry less"),
        chunk_size=ok(2, 1, 10**30),
    ),
}
WITHOUT, ALLOWED = {}, {}
