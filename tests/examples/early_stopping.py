import torch
from mistakes import Call, free, ok

from ponderlearn.robust import early_stopping

EXAMPLES = {
    "soft_weights": lambda: Call(
        early_stopping.soft_weights,
        scores=free(torch.randn(2, 3)),
        temperature=ok(0.5, 1.5, 10**30),
    ),
}
ALLOWED = {}
