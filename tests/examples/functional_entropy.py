import torch
from mistakes import Call, free, ok

from ponderlearn.robust import functional_entropy

EXAMPLES = {
    "soft_weights": lambda: Call(
        functional_entropy.soft_weights,
        scores=free(torch.randn(2, 3)),
        temperature=ok(0.5, 1.5, 10**30),
    ),
}
ALLOWED = {}
