import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.contrastive import infonce

x = lambda n=3, d=2: torch.randn(n, d)
target = lambda: torch.tensor([1, 0, 3])
pairs = lambda: torch.tensor([[True, True, False, True], [True] * 4, [False, True, True, True]])
rows = lambda: torch.tensor([True, False, True])


def network():
    return nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5))


def queue(n=3):
    made = infonce.NegativeQueue(4, 2)
    made.enqueue(x(n))
    return made


def new_queue():
    one = x()
    return Call(infonce.NegativeQueue, size=4, dim=2, dtype=torch.float32).then(
        lambda made: (made.enqueue(one), made.keys())[1]
    )


def queue_enqueue():
    made = queue()
    return Call(made.enqueue, keys=ok(x(), "axis more")).then(lambda _: made.keys())


def info_nce_module():
    q, k = x(), x()
    return Call(
        infonce.InfoNCELoss,
        temperature=ok(0.5, 1.5, 10**30),
        symmetric=True,
        decoupled=True,
        normalize=False,
        reduction="mean",
    ).then(lambda made: made(q, k))


def nt_xent_module():
    q, k = x(), x()
    return Call(
        infonce.NTXentLoss,
        temperature=ok(0.5, 1.5, 10**30),
        decoupled=True,
        dcl_sigma=ok(0.5, 1.5, 10**30),
        normalize=False,
        chunk_size=2,
        reduction="mean",
    ).then(lambda made: made(q, k))


EXAMPLES = {
    "info_nce_from_logits": lambda: Call(
        infonce.info_nce_from_logits,
        logits=x(3, 4),
        target=target(),
        mask=ok(pairs(), "axis fewer"),
        decoupled=True,
        positive_weight=torch.rand(3),
        reduction="none",
    ),
    "contrastive_logits": lambda: Call(
        infonce.contrastive_logits,
        anchors=x(),
        candidates=x(4),
        temperature=ok(0.5, 1.5, 10**30),
        normalize=True,
    ),
    "info_nce_loss": lambda: Call(
        infonce.info_nce_loss,
        query=x(),
        positive_key=x(),
        temperature=torch.tensor(0.5),
        symmetric=True,
        mask=rows(),
        decoupled=True,
        normalize=True,
        reduction="none",
    ),
    "info_nce_loss, negatives": lambda: Call(
        infonce.info_nce_loss,
        query=x(),
        positive_key=x(),
        negative_keys=ok(torch.randn(3, 4, 2), "axis fewer"),
        temperature=ok(0.5, 1.5, 10**30),
        mask=torch.ones(3, 4) > 0,
    ),
    "nt_xent_loss": lambda: Call(
        infonce.nt_xent_loss,
        z1=x(),
        z2=x(),
        temperature=ok(0.5, 1.5, 10**30),
        mask=rows(),
        decoupled=True,
        dcl_sigma=ok(0.5, 1.5, 10**30),
        normalize=True,
        reduction="none",
    ),
    "nt_xent_loss, chunks": lambda: Call(
        infonce.nt_xent_loss,
        z1=x(),
        z2=x(),
        temperature=torch.tensor(0.5),
        mask=rows(),
        chunk_size=2,
    ),
    "mi_lower_bound": lambda: Call(infonce.mi_lower_bound, scores=free(x(3, 3))),
    "NegativeQueue": new_queue,
    "NegativeQueue.enqueue": queue_enqueue,
    "ema_update_": lambda: Call(
        infonce.ema_update_, target=network(), source=network(), decay=ok(0.5, 0, 1)
    ),
    "InfoNCELoss": info_nce_module,
    "InfoNCELoss.forward": lambda: Call(
        infonce.InfoNCELoss(),
        query=x(),
        positive_key=x(),
        negative_keys=x(4),
        mask=torch.ones(4) > 0,
    ),
    "NTXentLoss": nt_xent_module,
    "NTXentLoss.forward": lambda: Call(infonce.NTXentLoss(), z1=x(), z2=x(), mask=rows()),
}
WITHOUT = {"NegativeQueue.set_extra_state": "called by load_state_dict"}
ALLOWED = {}
