import torch
from mistakes import Call, free, ok

from ponderlearn.contrastive import swav

EXAMPLES = {
    "soft_weights": lambda: Call(
        swav.soft_weights, scores=free(torch.randn(2, 3)), temperature=ok(0.5, 1.5, 10**30)
    ),
}
ALLOWED = {}
