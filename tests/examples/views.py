import torch
from mistakes import Call, free, ok

from ponderlearn import views

images = lambda: torch.rand(5, 1, 8, 8)
strengths = lambda: {
    "rotation": ok(20.0, 0, 1.5, 10**30),
    "scaling": ok(0.2, 0),
    "shear": ok(0.2, 0, 1.5, 10**30),
    "shift": ok(0.1, 0, 1.5, 10**30),
    "noise": ok(0.1, 0, 1.5, 10**30),
}
generator = lambda: torch.Generator().manual_seed(1)

EXAMPLES = {
    "random_view": lambda: Call(
        views.random_view, images=free(images()), **strengths(), generator=generator()
    ),
    "two_views": lambda: Call(
        views.two_views, images=free(images()), batch_size=3, **strengths()
    ).then(lambda batches: batches(1, torch.Generator().manual_seed(1))),
    "small_encoder": lambda: Call(
        views.small_encoder, output_size=3, size=8, channels=1, seed=ok(1, 0)
    ).then(lambda net: net.state_dict()),
}
WITHOUT, ALLOWED = {}, {}
