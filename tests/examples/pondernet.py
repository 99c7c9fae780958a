import torch
import torch.nn.functional as F
from mistakes import Call, free, ok

from ponderlearn.adaptive import pondernet as pn


def generator():
    return torch.Generator().manual_seed(1)


def log_p():
    return torch.randn(4, 3).log_softmax(0)


def net(**more):
    return pn.PonderNet(pn.RecurrentStep(2, 5, 3, **more), 4)


def x():
    return torch.randn(6, 2)


def h():
    return torch.randn(6, 5)


def tokens():
    return torch.randn(6, 7, 4)  # (B, T, embed_dim)


def key_mask():
    return torch.arange(7) < torch.randint(1, 8, (6, 1))


def pondered():
    return net()(x())


CPU = torch.device("cpu")


def made(cls, example, **arguments):
    "A constructor, used once."
    return Call(cls, **arguments).then(lambda module: module(example))


def ponder_net(step, **more):
    one = x()
    return Call(pn.PonderNet, step=step, n_steps=4, truncation="remainder", **more).then(
        lambda net: net(one)
    )


def plain_step(x, state):
    state = torch.tanh(x.sum(1, keepdim=True) if state is None else x[:, :1] + state)
    return state, state[:, 0], state


def stories():
    return Call(
        pn.stories,
        batch_size=5,
        n_facts=4,
        two_facts=ok(0.6, 0),
        generator=generator(),
        device=CPU,
    )


def associative_pairs():
    sizes = dict(batch_size=5, length=3, n_chains=4, dim=6)
    return Call(pn.associative_pairs, **sizes, generator=generator(), device=CPU)


UNMASKED = "first alone", "None inside"  # the tokens without a mask
HEAD = dict(output_size=3, confidence=True, lambda_init=0.3)
EXAMPLES = {
    "halting_log_probs": lambda: Call(
        pn.halting_log_probs, logits=free(torch.randn(4, 3)), truncation="remainder"
    ),
    "expected_steps": lambda: Call(pn.expected_steps, log_p=free(log_p())),
    "geometric_prior": lambda: Call(
        pn.geometric_prior,
        lambda_p=0.3,
        n_steps=4,
        truncation="remainder",
        log=True,
        dtype=torch.float64,
        device=CPU,
    ),
    "steps_for_mass": lambda: Call(pn.steps_for_mass, lambda_p=0.3, epsilon=0.1),
    "steps_to_mass": lambda: Call(pn.steps_to_mass, log_p=free(log_p()), epsilon=0.1),
    "halting_kl": lambda: Call(
        pn.halting_kl,
        log_p=ok(log_p(), "width"),
        log_prior=pn.geometric_prior(0.3, 4, log=True),
        reduction="mean",
        reverse=False,
    ),
    "ponder_loss": lambda: Call(
        pn.ponder_loss,
        step_losses=torch.rand(4, 3),
        logits=torch.randn(4, 3),
        lambda_p=0.3,
        beta=ok(0.1, 0, 1.5, 10**30),
        truncation="remainder",
        reduction="mean",
        reverse=False,
    ),
    "ponder_loss, of a network": lambda: Call(
        pn.ponder_loss,
        step_losses=torch.rand(4, 6),
        logits=ok(pondered(), "first alone"),
        truncation="remainder",
    ),
    "step_losses": lambda: Call(
        pn.step_losses,
        pondered=pondered(),
        target=torch.randint(0, 3, (6,)),
        loss_fn=F.cross_entropy,
    ),
    "optimal_halting": lambda: Call(
        pn.optimal_halting,
        step_losses=free(torch.rand(4, 3)),
        lambda_p=0.3,
        beta=ok(0.1, 1.5, 10**30),
        truncation="remainder",
    ),
    "PonderHead": lambda: made(pn.PonderHead, h(), hidden_size=5, **HEAD),
    "PonderHead.forward": lambda: Call(pn.PonderHead(5, 3), h=ok(h(), "axis more", "axis fewer")),
    "prediction_entropy": lambda: Call(pn.prediction_entropy, output=free(torch.randn(6, 3))),
    "MLPStep": lambda: made(pn.MLPStep, x(), input_size=2, hidden_size=5, **HEAD),
    "MLPStep.forward": lambda: Call(pn.MLPStep(2, 5, 3), x=x(), state=h()),
    "PonderNet": lambda: ponder_net(
        pn.RecurrentStep(2, 5, 3), init_state=lambda x: x.new_ones(6, 5)
    ),
    "PonderNet, plain": lambda: ponder_net(plain_step),
    "PonderNet.forward": lambda: Call(net(), x=x(), state=h()),
    "PonderNet.forward, LSTM": lambda: Call(net(cell="lstm"), x=x(), state=(h(), h())),
    "PonderNet.predict": lambda: Call(
        net().predict,
        x=x(),
        state=h(),
        rule="sample",
        threshold=ok(0.5, 1),
        max_steps=4,
        generator=generator(),
    ),
    "PonderOutput": lambda: made(
        pn.PonderOutput, x(), model=net(), rule="threshold", threshold=ok(0.5, 1)
    ),
    "PonderOutput.forward": lambda: Call(pn.PonderOutput(net()), x=x()),
    "RecurrentStep": lambda: made(
        pn.RecurrentStep, x(), input_size=2, hidden_size=5, cell="gru", **HEAD
    ),
    "RecurrentStep.forward": lambda: Call(pn.RecurrentStep(2, 5, 3), x=x(), state=h()),
    "RecurrentStep.forward, LSTM": lambda: Call(
        pn.RecurrentStep(2, 5, 3, cell="lstm"), x=x(), state=(h(), h())
    ),
    "AttentionStep": lambda: made(pn.AttentionStep, tokens(), embed_dim=4, hidden_size=5, **HEAD),
    "AttentionStep.forward": lambda: Call(pn.AttentionStep(4, 5, 3), x=tokens(), state=h()),
    "AttentionStep.forward, padded": lambda: Call(
        pn.AttentionStep(4, 5, 3), x=ok((tokens(), key_mask()), *UNMASKED), state=h()
    ),
    "TransformerStep": lambda: made(pn.TransformerStep, tokens(), embed_dim=4, num_heads=2, **HEAD),
    "TransformerStep.forward": lambda: Call(
        pn.TransformerStep(4, 2, 3), x=tokens(), state=tokens()
    ),
    "TransformerStep.forward, padded": lambda: Call(
        pn.TransformerStep(4, 2, 3), x=ok((tokens(), key_mask()), *UNMASKED)
    ),
    "halting_steps": lambda: Call(
        pn.halting_steps,
        logits=ok(torch.randn(4, 3), "axes swapped", "width"),
        rule="threshold",
        threshold=0.5,
        generator=generator(),
    ),
    "stories": stories,
    "tell": lambda: Call(pn.tell, batch=pn.stories(3, generator=generator()), index=ok(1, 0, -1)),
    "StoryEmbedding": lambda: made(
        pn.StoryEmbedding,
        pn.stories(3, n_facts=4, generator=generator()).tokens,
        embed_dim=5,
        n_facts=4,
    ),
    "StoryEmbedding.forward": lambda: Call(
        pn.StoryEmbedding(5), tokens=pn.stories(3, generator=generator()).tokens
    ),
    "associative_pairs": associative_pairs,
}
INSIDE = "a part of the step function, which PonderNet calls; forward checks what a user gives"
WITHOUT = {
    f"{step}.{part}": INSIDE
    for step, parts in {
        "RecurrentStep": ("encode", "advance", "head", "unroll"),
        "AttentionStep": ("encode", "advance", "head"),
        "TransformerStep": ("advance", "head"),
    }.items()
    for part in parts
}
DTYPE = "which dtype the target has is the loss function's matter, and torch's says it"
ALLOWED = {("step_losses", "target", mistake): DTYPE for mistake in ("bool", "float", "int32")}
