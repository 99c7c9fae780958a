import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.generative import vaebm as vb

# sizes all different: 5 rows, a code of 2, data of 3
big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def decode(z):
    return torch.cat([z, z[:, :1].square()], 1), z.new_full((), -0.5)


def energy():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1), nn.Flatten(0))


def model():
    return vb.VAEBM(decode, energy(), 2, (3,))


def noise():
    return torch.randn(5, 2), torch.randn(5, 3)


def bowl(*parts):
    return sum(part.square().flatten(1).sum(1) for part in parts)


def filled():
    buffer = vb.ReplayBuffer(7, (2,))
    buffer.push(torch.randn(6, 2))
    return buffer


def generator_of_data():
    eps_z, eps_x = noise()
    made = Call(
        vb.gaussian_generator,
        decode=ok(decode, "returns a list"),
        prior=torch.tanh,
        temperature=ok(0.7, *big),
    )
    return made.then(lambda generate: generate(eps_z, eps_x))


def new_model():
    made = Call(
        vb.VAEBM,
        decode=ok(decode, "returns a list"),
        energy=energy(),
        latent_dim=2,
        data_shape=(3,),
        prior=torch.tanh,
    )
    eps = noise()
    return made.then(lambda net: net.potential(*eps))


def train_step():
    net = model()
    optimizer = torch.optim.SGD(net.energy.parameters(), 0.1)
    return Call(
        net.train_step,
        x=free(torch.randn(5, 3), "nan"),
        optimizer=optimizer,
        negatives=torch.randn(4, 3),
        spectral_weight=ok(0.1, 0, *big),
        magnitude_weight=ok(0.1, 0, *big),
        max_gap=ok(100.0, *big),
        generator=seeded(),
    )


EXAMPLES = {
    "contrastive_loss": lambda: Call(
        vb.contrastive_loss,
        e_data=free(torch.randn(5)),
        e_model=free(torch.randn(4)),
        magnitude_weight=ok(0.1, 0, *big),
    ),
    "gaussian_generator": generator_of_data,
    "noise_energy": lambda: Call(
        vb.noise_energy,
        eps_z=noise()[0],
        eps_x=ok(noise()[1], None),
        generate=vb.gaussian_generator(decode),
        energy=energy(),
        temperature=ok(0.7, *big),
    ),
    "langevin": lambda: Call(
        vb.langevin,
        potential=bowl,
        state=ok(noise(), "entry less", "first alone", "width inside"),
        step_size=ok(0.1, *big),
        n_steps=ok(3, 0),
        metropolis=True,
        generator=seeded(),
        return_path=True,
    ),
    "lipschitz_swish": lambda: Call(vb.lipschitz_swish, x=free(torch.randn(5, 3))),
    "spectral_penalty": lambda: Call(
        vb.spectral_penalty, module=energy(), n_iter=4, generator=seeded()
    ),
    "ReplayBuffer": lambda: Call(
        vb.ReplayBuffer,
        capacity=7,
        shape=ok((2,), "empty", "entry less"),
        device=torch.device("cpu"),
    ).then(lambda buffer: buffer.memory),
    "ReplayBuffer.push": lambda: Call(filled().push, eps=free(torch.randn(5, 2))),
    "ReplayBuffer.draw": lambda: Call(filled().draw, n=4, p=ok(0.5, 0), generator=seeded()),
    "VAEBM": new_model,
    "VAEBM.train": lambda: Call(model().train, mode=True).then(lambda net: net.training),
    "VAEBM.generate": lambda: Call(model().generate, eps_z=noise()[0], eps_x=noise()[1]),
    "VAEBM.potential": lambda: Call(model().potential, eps_z=noise()[0], eps_x=noise()[1]),
    "VAEBM.noise": lambda: Call(model().noise, n=5, generator=seeded()),
    "VAEBM.sample": lambda: Call(
        model().sample,
        n=5,
        n_steps=ok(3, 0),
        step_size=ok(0.1, *big),
        temperature=ok(0.7, *big),
        mean=False,
        generator=seeded(),
    ),
    "VAEBM.negatives": lambda: Call(
        model().negatives,
        n=5,
        n_steps=ok(3, 0),
        step_size=ok(0.1, *big),
        buffer=filled(),
        p=ok(0.5, 0),
        mean=True,
        generator=seeded(),
    ),
    "VAEBM.train_step": train_step,
    "VAEBM.log_weight": lambda: Call(model().log_weight, x=free(torch.randn(5, 3))),
    "VAEBM.log_partition": lambda: Call(model().log_partition, n=50, generator=seeded()),
}
ALLOWED = {}
WITHOUT = dict.fromkeys(
    ("VAEBM.set_extra_state", "ReplayBuffer.set_extra_state"),
    "load_state_dict calls it with what get_extra_state gave",
)
