import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn._check import check_input
from ponderlearn._nested import mlp
from ponderlearn.generative import exemplar_vae as ev


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(6, 8, 4)

    def forward(self, x):
        check_input(x, "x", ("B", 6), like=self.net[0].weight)
        return self.net(x).chunk(2, dim=1)


def seeded():
    return torch.Generator().manual_seed(1)


def z(seed=0):
    torch.manual_seed(seed)
    return torch.randn(5, 2)


def centers():
    torch.manual_seed(7)
    return torch.randn(8, 2)


def mask():
    torch.manual_seed(8)
    kept = torch.rand(5, 8) < 0.5
    kept[:, :3] = True
    return kept


def log_var():
    return ok(torch.tensor(-0.5), "axis more")


def images():
    torch.manual_seed(9)
    return (torch.rand(5, 6) < 0.4).float()


def model():
    torch.manual_seed(10)
    return ev.ExemplarVAE(Encoder(), mlp(2, 8, 6), 2)


def cache():
    made = ev.ExemplarCache(8, 2)
    made.update(torch.arange(8), centers())
    return made


def encode(x):
    x = x.float()
    return x[:, :2], x[:, 2:4]


def decode_log_prob(x, z):
    return x.float().sum(1) * z.sum(1)


def log_prior(z):
    return -z.square().sum(1)


def functions():
    return {
        "x": free(images(), "nan"),
        "encode": encode,
        "decode_log_prob": decode_log_prob,
        "log_prior": log_prior,
        "generator": seeded(),
    }


EXAMPLES = {
    "exemplar_log_prior": lambda: Call(
        ev.exemplar_log_prior,
        z=z(),
        centers=centers(),
        log_var=log_var(),
        mask=mask(),
        n=ok(9, 10**30),
        chunk_size=ok(3, 10**30),
    ),
    "leave_one_out": lambda: Call(
        ev.leave_one_out,
        index=free(torch.tensor([0, 2, 4]), "entry -1", "entry past the end"),
        exemplars=free(torch.tensor([4, 1, 2, 0]), "entry -1", "entry past the end"),
    ),
    "mixture_kl_bound": lambda: Call(
        ev.mixture_kl_bound,
        mu=z(),
        log_var_q=z(1),
        centers=centers(),
        log_var=log_var(),
        mask=mask(),
    ),
    "knn_log_prior": lambda: Call(
        ev.knn_log_prior,
        z=z(),
        centers=centers(),
        log_var=log_var(),
        k=3,
        mask=mask(),
        search_centers=centers(),
        share=False,
    ),
    "vamp_log_prior": lambda: Call(
        ev.vamp_log_prior, z=z(), means=centers(), log_vars=centers().flip(0)
    ),
    "elbo_terms": lambda: Call(ev.elbo_terms, **functions(), beta=ok(0.5, 0, 1.5, 10**30)),
    "iwae_log_likelihood": lambda: Call(
        ev.iwae_log_likelihood, **functions(), n_samples=4, chunk_size=ok(2, 10**30)
    ),
    "ExemplarVAE": lambda: Call(
        ev.ExemplarVAE,
        encoder=Encoder(),
        decoder=mlp(2, 8, 6),
        latent_dim=2,
        likelihood="bernoulli",
    ),
    "ExemplarVAE.encode": lambda: Call(model().encode, x=images()),
    "ExemplarVAE.decode_log_prob": lambda: Call(model().decode_log_prob, x=images(), z=z()),
    "ExemplarVAE.decode_mean": lambda: Call(model().decode_mean, z=z()),
    "ExemplarVAE.centers": lambda: Call(model().centers, x=images(), chunk_size=ok(2, 10**30)),
    "ExemplarVAE.elbo": lambda: Call(
        model().elbo,
        x=images(),
        centers=centers(),
        mask=mask(),
        beta=ok(0.5, 0, 1.5, 10**30),
        generator=seeded(),
    ),
    "ExemplarVAE.augment": lambda: Call(model().augment, x=images(), generator=seeded()),
    "ExemplarVAE.sample": lambda: Call(model().sample, n=4, centers=centers(), generator=seeded()),
    "ExemplarCache": lambda: Call(ev.ExemplarCache, n=4, dim=2),
    "ExemplarCache.update": lambda: Call(
        cache().update, index=torch.tensor([0, 3, 4, 6, 7]), means=z()
    ),
    "ExemplarCache.nearest": lambda: Call(
        cache().nearest, z=z(), k=2, mask=mask()[:, :6], candidates=torch.tensor([7, 1, 2, 5, 4, 0])
    ),
    "rat_step": lambda: Call(
        ev.rat_step,
        model=model(),
        cache=cache(),
        data=images().repeat(2, 1)[:8],
        x=images(),
        index=torch.arange(5),
        k=2,
        candidates=ok(torch.tensor([7, 1, 2, 5, 4, 0]), "width", "rows"),
        beta=ok(0.5, 0, 1.5, 10**30),
        generator=seeded(),
    ),
    "knn_predict": lambda: Call(
        ev.knn_predict,
        train_codes=centers(),
        train_labels=ok(torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), "entry -1", "entry past the end"),
        codes=z(),
        k=3,
    ),
}
STEP = "called at each update: a look at values would make a GPU wait"
ALLOWED = {
    ("knn_log_prior", "search_centers", "nan"): STEP,
    ("ExemplarCache.nearest", "z", "nan"): STEP,
}
