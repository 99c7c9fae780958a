import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.language import summarize_feedback as sf

big = 1.5, 10**30
floats = "nan", "half", "float64"


def seeded():
    return torch.Generator().manual_seed(1)


def fixed(make, *sizes, **how):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make(*sizes, **how)


def model():
    return fixed(sf.CausalTransformer, 15, 8, num_heads=2)


def backbone():
    net = model()
    net.head = nn.Identity()
    return net


def reward_model():
    return sf.RewardModel(backbone(), 8, head_init="normal", generator=seeded())


def world():
    return sf.WordCards(
        ("a", "b", "c"), (1.0, 0.5, -0.5), (0.5, 0.5, 0.5), post_length=2, max_words=3
    )


def posts():
    return torch.tensor([[3, 4, 1], [5, 3, 1]])


def summaries():
    return torch.tensor([[3, 2, 0, 0], [4, 5, 2, 0]])


def numbers(*shape):
    return torch.randn(*(shape or (2, 3)), generator=seeded())


def mask():
    return torch.tensor([[True, True, False], [True, True, True]])


def looked(tensor):
    return free(tensor, *floats)


EXAMPLES = {
    "WordCards": lambda: Call(
        sf.WordCards,
        words=("a", "b", "c"),
        worth=ok((1.0, 0.5, -0.5)),
        keep=ok((0.5, 0.5, 0.5)),
        post_length=2,
        max_words=3,
        temperature=ok(0.5, *big),
        slips=ok(0.0, 0),
        generator=seeded(),
    ).then(lambda made: made.posts(2)),
    "WordCards.posts": lambda: Call(world().posts, n=3, generator=seeded()),
    "WordCards.references": lambda: Call(
        world().references, posts=free(posts(), "rows"), generator=seeded()
    ),
    "WordCards.utility": lambda: Call(world().utility, posts=posts(), summaries=free(summaries())),
    "WordCards.compare": lambda: Call(
        world().compare,
        posts=posts(),
        a=free(summaries()),
        b=free(summaries().flip(0)),
        generator=seeded(),
    ),
    "WordCards.decode": lambda: Call(world().decode, tokens=free(summaries())),
    "CausalTransformer": lambda: Call(
        sf.CausalTransformer, vocab_size=15, embed_dim=8, num_layers=1, num_heads=2, max_length=9
    ).then(lambda net: [p.shape for p in net.parameters()]),
    "CausalTransformer.forward": lambda: Call(
        model().forward, tokens=free(posts()), cache=model()(posts()).cache
    ).then(lambda out: out.logits),
    "sample_tokens": lambda: Call(
        sf.sample_tokens,
        model=model(),
        prompts=free(posts()),
        max_steps=3,
        temperature=ok(1.0, 0, *big),
        eos=2,
        pad=0,
        n_samples=2,
        generator=seeded(),
    ).then(lambda found: found.log_probs),
    "token_log_probs": lambda: Call(
        sf.token_log_probs,
        logits=looked(numbers(2, 3, 5)),
        tokens=torch.tensor([[0, 1, 2]] * 2),
        chunk_size=4,
    ),
    "token_kl": lambda: Call(
        sf.token_kl,
        logits=looked(numbers(2, 5)),
        ref_logits=looked(numbers(2, 5).flip(1)),
        chunk_size=4,
    ),
    "preference_loss": lambda: Call(
        sf.preference_loss,
        chosen=looked(numbers(4)),
        rejected=looked(numbers(4).flip(0)),
        reduction="sum",
    ),
    "RewardModel": lambda: Call(
        sf.RewardModel,
        backbone=backbone(),
        embed_dim=8,
        head_init="normal",
        readout="sum",
        generator=seeded(),
    ).then(lambda net: [p.shape for p in net.parameters()]),
    "RewardModel.forward": lambda: Call(
        reward_model().forward, tokens=free(posts()), lengths=torch.tensor([3, 2]), start=1
    ),
    "RewardModel.values": lambda: Call(reward_model().values, tokens=free(posts())),
    "RewardModel.calibrate": lambda: Call(
        reward_model().calibrate, reference_scores=free(numbers(4))
    ),
    "kl_estimate": lambda: Call(sf.kl_estimate, log_ratio=looked(numbers(4)), kind="k3"),
    "shaped_rewards": lambda: Call(
        sf.shaped_rewards,
        score=looked(numbers(2)),
        log_probs=looked(numbers()),
        ref_log_probs=looked(numbers().flip(1)),
        mask=mask(),
        beta=ok(0.1, 0, *big),
    ),
    "gae": lambda: Call(
        sf.gae,
        rewards=looked(numbers()),
        values=looked(numbers().flip(1)),
        mask=mask(),
        gamma=ok(0.9, 0),
        lam=ok(0.8, 0),
        last_value=looked(numbers(2)),
    ),
    "whiten": lambda: Call(
        sf.whiten, x=looked(numbers()), mask=mask(), shift_mean=False, eps=ok(1e-8, 0, *big)
    ),
    "ppo_policy_loss": lambda: Call(
        sf.ppo_policy_loss,
        log_probs=looked(numbers()),
        old_log_probs=looked(numbers().flip(1)),
        advantages=looked(numbers().flip(0)),
        mask=mask(),
        clip=ok(0.2, None, *big),
    ),
    "ppo_value_loss": lambda: Call(
        sf.ppo_value_loss,
        values=looked(numbers()),
        old_values=looked(numbers().flip(1)),
        returns=looked(numbers().flip(0)),
        mask=mask(),
        clip=ok(0.2, None, *big),
    ),
    "best_of_n": lambda: Call(
        sf.best_of_n,
        proxy=free(numbers(2, 4), "half", "float64"),
        gold=free(numbers(2, 4).flip(1), "half", "float64"),
        n=free(torch.tensor([1, 3]), "rows"),
    ),
    "best_of_n_kl": lambda: Call(
        sf.best_of_n_kl, n=free(torch.tensor([1, 3]), "entry past the end")
    ),
    "dpo_loss": lambda: Call(
        sf.dpo_loss,
        chosen=looked(numbers(3)),
        rejected=looked(numbers(3).flip(0)),
        ref_chosen=looked(numbers(3) / 2),
        ref_rejected=looked(numbers(3) / 3),
        beta=ok(0.1, *big),
        reduction="none",
    ),
}
ALLOWED = {}
