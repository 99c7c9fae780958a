import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.robust import functional_entropy as fe

B, C, S, M = 5, 4, 6, 2


class Model(nn.Module):
    "Two modalities, (B, 3) and (B, 2, 7), row by row."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, C), nn.Linear(14, C)

    def forward(self, u, v):
        return torch.tanh(self.first(u)) + self.second(v.flatten(1))


# how many modalities there are, their shapes and dtypes is between the model and its user
OPEN = ("entry less", "width inside", "half inside")
inputs = lambda: ok([torch.randn(B, 3), torch.randn(B, 2, 7)], *OPEN)
generator = lambda: torch.Generator().manual_seed(1)
values = lambda: torch.rand(B, S) + 0.5
weights = lambda: ok(torch.rand(B, S) + 0.5, "axis fewer")
how = lambda: dict(
    n_samples=2,
    scale=ok(0.5, 0, 1.5, 10**30),
    kind="variance",
    direction="perturbed_to_clean",
    weight_by_scale=True,
    eps=ok(0.1, 0, 1.5, 10**30),
    generator=generator(),
)

EXAMPLES = {
    "functional_entropy": lambda: Call(
        fe.functional_entropy, f=ok(values(), "axis more"), weights=weights(), dim=ok(1, 0, -1, -2)
    ),
    "functional_variance": lambda: Call(
        fe.functional_variance, f=ok(values(), "axis more"), weights=weights(), dim=ok(1, 0, -1, -2)
    ),
    "functional_fisher_information": lambda: Call(
        fe.functional_fisher_information,
        f=values(),
        grad=torch.randn(B, S, 3),
        scale=torch.rand(3),
        weights=weights(),
        dim=ok(1, 0, -1, -2),
        eps=ok(0.1, 0, 1.5, 10**30),
    ),
    "log_sobolev_bound": lambda: Call(
        fe.log_sobolev_bound,
        f=values(),
        grad=torch.randn(B, S, 3),
        scale=torch.rand(3),
        weights=weights(),
        dim=ok(1, 0, -1, -2),
    ),
    "poincare_bound": lambda: Call(
        fe.poincare_bound,
        grad=ok(torch.randn(B, S, 3), "axis more"),
        scale=torch.rand(3),
        weights=weights(),
        dim=ok(1, 0, -1, -2),
    ),
    "output_cross_entropy": lambda: Call(
        fe.output_cross_entropy,
        clean_logits=torch.randn(B, C),
        perturbed_logits=torch.randn(B, C),
        direction="perturbed_to_clean",
    ),
    "perturb": lambda: Call(
        fe.perturb, inputs=inputs(), n_samples=2, scale=ok("batch", "number"), generator=generator()
    ),
    "modality_information": lambda: Call(
        fe.modality_information,
        model=Model(),
        inputs=inputs(),
        **how(),
        create_graph=False,
        reduction="none",
    ),
    "information_penalty": lambda: Call(
        fe.information_penalty,
        info=free(torch.rand(M, B) + 0.1),
        form="balance",
        eps=ok(0.1, 0, 1.5, 10**30),
    ),
    "information_share": lambda: Call(fe.information_share, info=free(torch.rand(M, B) + 0.1)),
    "FunctionalEntropyRegularizer": lambda: Call(
        fe.FunctionalEntropyRegularizer,
        penalty_weight=ok(0.3, 0, 1.5, 10**30),
        form="balance",
        **how(),
    ),
    "FunctionalEntropyRegularizer.forward": lambda: Call(
        fe.FunctionalEntropyRegularizer(0.3, scale=0.5, generator=generator()),
        model=Model(),
        inputs=inputs(),
    ),
}
ALLOWED = {}
