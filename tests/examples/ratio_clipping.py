import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.generative import ratio_clipping

big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def net(*sizes):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Linear(*sizes)


def logs(*legal):
    return free(torch.tensor([0.5, 0.3, 0.2]).log(), *legal)


def scores(n=6):
    return free(torch.randn(n), "rows")


def surrogate(**how):
    made = Call(
        ratio_clipping.generator_surrogate,
        image_generator=net(3, 2),
        critic=net(2, 1),
        classifier=net(2, 1),
        z=ok(torch.randn(6, 3), "width"),
        old_logits=torch.randn(6),
        **how,
    )
    return made.then(lambda found: found.objective)


EXAMPLES = {
    "tilt": lambda: Call(ratio_clipping.tilt, log_p=logs(), scores=torch.randn(3)),
    "reverse_kl_objective": lambda: Call(
        ratio_clipping.reverse_kl_objective,
        log_p_new=logs(),
        log_p_old=torch.randn(3).log_softmax(0),
        scores=torch.randn(3),
    ),
    "clipped_surrogate": lambda: Call(
        ratio_clipping.clipped_surrogate,
        scores=scores(),
        log_ratio=torch.randn(6),
        clip=ok(0.2, None),
        kind="upper",
        baseline=ok(0.5, None, -1, 0, *big),
        reduction="mean",
    ),
    "clipped_surrogate, baseline": lambda: Call(
        ratio_clipping.clipped_surrogate,
        scores=scores(),
        log_ratio=torch.randn(6),
        baseline=ok(torch.tensor(0.5), None),
    ),
    "classifier_log_ratio": lambda: Call(
        ratio_clipping.classifier_log_ratio,
        new_logits=scores(),
        old_logits=torch.randn(6),
        bound=ok(20.0, 1.5),
    ),
    "fake_weights": lambda: Call(
        ratio_clipping.fake_weights, scores=scores(), temperature=ok(2.0, *big, float("inf"))
    ),
    "effective_sample_size": lambda: Call(
        ratio_clipping.effective_sample_size, weights=free(torch.rand(6), "rows")
    ),
    "reweighted_critic_loss": lambda: Call(
        ratio_clipping.reweighted_critic_loss,
        real_scores=scores(),
        fake_scores=scores(5),
        reweight=True,
        temperature=ok(2.0, *big, float("inf")),
    ),
    "donsker_varadhan": lambda: Call(
        ratio_clipping.donsker_varadhan, real_scores=scores(), fake_scores=scores(5)
    ),
    "generator_surrogate": lambda: surrogate(
        clip=ok(0.4, None), kind="ppo", baseline=ok(0.5, None, -1, 0, *big), through_ratio=True
    ),
    "generator_surrogate, real": lambda: surrogate(
        baseline=ok("real", None, "number"), real_scores=scores(4)
    ),
    "train_ratio_clipping": lambda: Call(
        ratio_clipping.train_ratio_clipping,
        image_generator=net(3, 2),
        critic=net(2, 1),
        classifier=ok(net(2, 1), None),
        real=torch.randn(20, 2),
        latent_dim=ok(3, *big),
        steps=2,
        batch_size=ok(4, *big),
        n_critic=1,
        n_steps=1,
        reweight=True,
        temperature=ok(2.0, *big, float("inf")),
        clip=ok(0.4, None),
        kind="ppo",
        baseline=ok(0.5, None, -1, 0, *big),
        through_ratio=False,
        lr=ok(1e-3, *big),
        betas=(0.0, 0.9),
        gradient_penalty_weight=ok(5.0, 0, *big),
        generator=seeded(),
    ).then(lambda found: found.history["critic_loss"]),
}
WITHOUT = {}
ALLOWED = {}
