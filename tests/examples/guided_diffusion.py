import torch
from mistakes import Call, free, ok

from ponderlearn.generative import guided_diffusion as gd

# sizes all different: 5 rows, 2 channels, 4 x 6 pixels, 7 classes, 30 steps
big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def images():
    return torch.rand(5, 2, 4, 6) * 2 - 1


def times():
    return torch.tensor([0, 3, 9, 20, 29])


def classes():
    return torch.tensor([0, 6, 3, 1, 2])


IMAGES, TIMES = images(), times()
HIDDEN, EMBEDDED = torch.randn(5, 4, 3), torch.randn(5, 6)


def process(variance="learned_range"):
    return gd.GaussianDiffusion(gd.beta_schedule("cosine", 30), variance=variance)


def net(**how):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = gd.DiffusionUNet(2, width=8, **how)
        torch.nn.init.normal_(made.out[-1].weight, std=0.1)
    return made.eval().requires_grad_(False)


def guide():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return gd.NoisyClassifier(2, 7, (4, 6), width=8).eval().requires_grad_(False)


def output():
    return torch.randn(5, 4, 4, 6)


def sampler():
    return gd.LossSecondMomentSampler(30)


def steps():
    "Steps whose values are not looked at: it would make a GPU wait."
    return ok(times(), "entry -1")


def seen():
    "Images that go to a network, which has its own word on dtype and sides."
    return ok(images(), "float64", "axes swapped", "width")


EXAMPLES = {
    "beta_schedule": lambda: Call(
        gd.beta_schedule, kind="cosine", n_steps=30, offset=ok(0.01, 0), max_beta=0.99
    ),
    "GaussianDiffusion": lambda: Call(
        gd.GaussianDiffusion,
        betas=torch.linspace(0.1, 0.5, 5),
        variance="small",
        timesteps=torch.tensor([0, 2, 4, 6, 8]),
        n_levels=17,
    ).then(lambda made: made.alpha_bar),
    "GaussianDiffusion.q_sample": lambda: Call(
        process().q_sample, x0=free(images()), t=steps(), noise=torch.randn(5, 2, 4, 6)
    ),
    "GaussianDiffusion.predict_x0": lambda: Call(
        process().predict_x0, xt=free(images()), t=steps(), eps=torch.randn(5, 2, 4, 6)
    ),
    "GaussianDiffusion.predict_eps": lambda: Call(
        process().predict_eps, xt=free(images()), t=steps(), x0=torch.randn(5, 2, 4, 6)
    ),
    "GaussianDiffusion.q_posterior": lambda: Call(
        process().q_posterior, x0=free(images()), xt=torch.randn(5, 2, 4, 6), t=steps()
    ),
    "GaussianDiffusion.p_mean_variance": lambda: Call(
        process().p_mean_variance, out=output(), xt=images(), t=steps(), clip=True
    ),
    "GaussianDiffusion.vlb_terms": lambda: Call(
        process().vlb_terms, out=output(), x0=images(), xt=images(), t=steps()
    ),
    "GaussianDiffusion.prior_bpd": lambda: Call(process().prior_bpd, x0=free(images())),
    "GaussianDiffusion.respace": lambda: Call(
        process().respace, indices=free(torch.tensor([1, 5, 20]), "rows")
    ).then(lambda made: made.alpha_bar),
    "diffusion_loss": lambda: Call(
        gd.diffusion_loss,
        diffusion=process(),
        model=net(),
        x0=ok(images(), "float64"),
        t=steps(),
        kind="hybrid",
        vlb_weight=ok(0.1, 0, *big),
        weights=torch.rand(5),
        noise=torch.randn(5, 2, 4, 6),
        reduction="none",
        generator=seeded(),
    ),
    "LossSecondMomentSampler": lambda: Call(
        gd.LossSecondMomentSampler, n_steps=30, history=4, uniform_share=ok(0.1, 0, 1)
    ).then(lambda made: made.prob),
    "LossSecondMomentSampler.sample": lambda: Call(sampler().sample, n=5, generator=seeded()),
    "LossSecondMomentSampler.update": lambda: Call(
        sampler().update, t=times(), losses=torch.rand(5)
    ),
    "strided_timesteps": lambda: Call(gd.strided_timesteps, n_steps=30, n_taken=4, kind="even"),
    "classifier_gradient": lambda: Call(
        gd.classifier_gradient,
        classifier=guide(),
        x=images(),
        t=steps(),
        y=classes(),
        scale=ok(2.0, -1, 0, *big),
    ),
    "sample": lambda: Call(
        gd.sample,
        diffusion=process(),
        model=net(),
        shape=(5, 2, 4, 6),
        method="ddim",
        eta=ok(0.5, 0),
        n_steps=ok(3, None),
        classifier=guide(),
        y=classes(),
        scale=ok(2.0, 0, *big),
        grad_at="x_t",
        clip=True,
        reclip=True,
        noise=ok(torch.randn(5, 2, 4, 6), "float64"),
        generator=seeded(),
        callback=None,
    ),
    "free_guided": lambda: Call(
        gd.free_guided, model=net(num_classes=7), y=classes(), scale=ok(2.0, 0, *big)
    ).then(lambda made, x=IMAGES, t=TIMES: made(x, t)),
    "timestep_embedding": lambda: Call(
        gd.timestep_embedding,
        t=free(times(), "bool", "entry past the end", "entry -1"),
        embed_dim=6,
        max_period=ok(100.0, *big),
    ),
    "AdaGroupNorm": lambda: Call(gd.AdaGroupNorm, n_groups=2, n_channels=4, embed_dim=6).then(
        lambda made, h=HIDDEN, emb=EMBEDDED: made(h, emb)
    ),
    "AdaGroupNorm.forward": lambda: Call(
        gd.AdaGroupNorm(2, 4, 6), h=free(torch.randn(5, 4, 3, 2)), emb=torch.randn(5, 6)
    ),
    "DiffusionUNet": lambda: Call(
        gd.DiffusionUNet,
        in_channels=2,
        width=8,
        multipliers=(1, 2),
        n_blocks=1,
        attention=(1,),
        num_classes=7,
        learned_variance=True,
        norm="add",
        dropout=ok(0.1, 0),
    ).then(lambda made, x=IMAGES, t=TIMES: made.eval()(x, t)),
    "DiffusionUNet.forward": lambda: Call(
        net(num_classes=7), x=ok(images(), "axes swapped"), t=steps(), y=classes()
    ),
    "NoisyClassifier": lambda: Call(
        gd.NoisyClassifier,
        in_channels=2,
        num_classes=7,
        image_size=(4, 6),
        width=8,
        multipliers=(1, 2),
        n_blocks=1,
        attention=ok((1,), "empty", "entry less"),
        dropout=ok(0.1, 0),
    ).then(lambda made, x=IMAGES, t=TIMES: made.eval()(x, t)),
    "NoisyClassifier.forward": lambda: Call(guide(), x=images(), t=steps()),
    "classifier_loss": lambda: Call(
        gd.classifier_loss,
        diffusion=process(),
        classifier=guide(),
        x0=seen(),
        target=classes(),
        t=steps(),
        reduction="none",
        generator=seeded(),
    ),
}
ALLOWED = {}
