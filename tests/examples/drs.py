import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.generative import drs

big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def net(*sizes):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Linear(*sizes)


def propose(n):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(n), device="cpu")


def logit_fn(x):
    return -x.square().sum(1)


def logits(*shape, **legal):
    return free(torch.randn(*shape), "rows")


def sampler(**how):
    return drs.DiscriminatorRejectionSampler(propose, logit_fn, generator=seeded(), **how)


def new_sampler(**how):
    made = Call(
        drs.DiscriminatorRejectionSampler,
        propose=propose,
        logit_fn=logit_fn,
        batch_size=ok(64, *big),
        generator=seeded(),
        **how,
    )
    return made.then(lambda s: s.burn_in(200).sample(9))


def state():
    return sampler().burn_in(50).state_dict()


EXAMPLES = {
    "accept_logit": lambda: Call(
        drs.accept_logit, logits=logits(5), log_m=ok(3.0, -1, 0, *big), eps=ok(0.1, 0, *big)
    ),
    "log_accept_prob": lambda: Call(
        drs.log_accept_prob,
        logits=logits(5),
        log_m=ok(3.0, -1, 0, *big),
        gamma=ok(0.5, -1, 0, *big),
        clamp=False,
    ),
    "accept_prob": lambda: Call(
        drs.accept_prob,
        logits=logits(5),
        log_m=ok(torch.tensor(3.0)),
        gamma=ok(0.5, -1, 0, *big),
    ),
    "gamma_for_percentile": lambda: Call(
        drs.gamma_for_percentile,
        logits=logits(5),
        log_m=ok(3.0, -1, 0, *big),
        percentile=ok(80.0, 0, 1.5),
    ),
    "gamma_for_rate": lambda: Call(
        drs.gamma_for_rate, logits=logits(5), log_m=ok(3.0, -1, 0, *big), rate=0.5
    ),
    "budget_accept_prob": lambda: Call(drs.budget_accept_prob, logits=logits(5), rate=0.5),
    "keep_training": lambda: Call(
        drs.keep_training,
        discriminator=net(3, 1),
        real=torch.randn(40, 3),
        propose=propose,
        steps=2,
        batch_size=4,
        valid_fraction=0.2,
        noise=ok(0.1, 0, 1.5),
        eval_every=1,
        patience=1,
        generator=seeded(),
    ),
    "ratio_identities": lambda: Call(
        drs.ratio_identities, real_logits=logits(6), fake_logits=logits(8)
    ),
    "calibrate_logits": lambda: Call(
        drs.calibrate_logits, real_logits=logits(60), fake_logits=logits(80)
    ),
    "mode_report": lambda: Call(
        drs.mode_report,
        samples=torch.randn(20, 3),
        centers=torch.eye(3)[:2],
        std=ok(0.5, *big),
        radius=ok(4.0, *big),
    ),
    "DiscriminatorRejectionSampler": lambda: new_sampler(gamma=ok(-1.0, 0, -1, *big)),
    "DiscriminatorRejectionSampler, percentile": lambda: new_sampler(
        percentile=ok(80.0, 0, 1.5), per_batch=True
    ),
    "DiscriminatorRejectionSampler, rate": lambda: new_sampler(rate=0.5),
    "DiscriminatorRejectionSampler.burn_in": lambda: Call(sampler().burn_in, n=50).then(
        lambda s: s.log_m
    ),
    "DiscriminatorRejectionSampler.sample": lambda: Call(
        sampler().burn_in(50).sample, n=7, max_proposals=5000, return_logits=True
    ),
    "DiscriminatorRejectionSampler.load_state_dict": lambda: Call(
        sampler().load_state_dict, state=state()
    ),
}
WITHOUT = {}
ALLOWED = {}
