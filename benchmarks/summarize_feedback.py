"""GAE beside the loop over time, sampling with a cache beside reading all again, log-probabilities.

The loop is the one of TRL's and the ancestor code's trainers, written anew: backwards over the
tokens, the results stacked. Sampling without a cache runs the same network on the whole text for
each token. Log-probabilities: the usual log-softmax and gather, with memory beside the logits.

Run with `make bench`, or:
.venv-bench/bin/python benchmarks/summarize_feedback.py [timed runs of each, 41]
"""

import sys

import torch
from compare import interleaved, peak_megabytes, save

from ponderlearn.language.summarize_feedback import (
    CausalTransformer,
    gae,
    sample_tokens,
    token_log_probs,
)

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 41


def gae_loop(rewards, values, gamma: float = 1.0, lam: float = 0.95):
    "Advantages and returns, one token after the other from the end."
    later, found, n = 0.0, [], rewards.shape[1]
    for t in reversed(range(n)):
        ahead = values[:, t + 1] if t < n - 1 else 0.0
        delta = rewards[:, t] + gamma * ahead - values[:, t]
        later = delta + gamma * lam * later
        found.append(later)
    advantages = torch.stack(found[::-1], dim=1)
    return advantages, advantages + values


def advantages(B: int, T: int) -> dict:
    "A batch of episodes of one length."
    rewards, values = torch.randn(2, B, T)
    for ours, wanted in zip(gae(rewards, values), gae_loop(rewards, values), strict=True):
        assert torch.allclose(ours, wanted, atol=1e-3)
    ours, theirs = lambda: gae(rewards, values), lambda: gae_loop(rewards, values)
    found = interleaved(ours, theirs, repeats=REPEATS)
    return {"what": f"GAE, B = {B}, T = {T}", "beside": "loop over T"} | found


class Whole(torch.nn.Module):
    "The network without its cache: what comes as cache is the text so far."

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, tokens, text):
        "Logits of the new tokens, and the longer text."
        text = tokens if text is None else torch.cat([text, tokens], 1)
        return self.net(text).logits[:, -tokens.shape[1] :], text


def sampling(B: int, prompt: int, new: int, d: int, layers: int) -> dict:
    "Samples of an untrained network, none of which ends early."
    net = CausalTransformer(500, d, num_layers=layers, max_length=prompt + new)
    prompts = torch.randint(500, (B, prompt))

    def run(model):
        generator = torch.Generator().manual_seed(0)
        return sample_tokens(model, prompts, max_steps=new, generator=generator).tokens

    assert (run(net) == run(Whole(net))).double().mean() > 0.95  # rounding may turn a draw
    found = interleaved(
        lambda: run(net), lambda: run(Whole(net)), repeats=max(5, REPEATS // 4), warmup=1
    )
    what = f"sampling, B = {B}, {prompt} + {new} tokens, width {d}, {layers} layers"
    return {"what": what, "beside": "no cache"} | found


def log_probabilities(B: int, T: int, V: int) -> dict:
    "Forward pass: time, and memory beside the logits."
    logits, tokens = torch.randn(B, T, V), torch.randint(V, (B, T))

    def ours():
        return token_log_probs(logits, tokens)

    def theirs():
        return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    assert torch.allclose(ours(), theirs(), atol=1e-4)
    found = interleaved(ours, theirs, repeats=max(5, REPEATS // 4), warmup=1)
    memory = f"{peak_megabytes(ours)} MB against {peak_megabytes(theirs)} MB"
    what = f"log-probabilities, ({B}, {T}, {V}); {memory} beside the logits"
    return {"what": what, "beside": "log-softmax and gather"} | found


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        rows = [
            advantages(*size) for size in ((64, 6), (64, 48), (512, 48), (512, 256), (64, 1000))
        ]
        rows += [
            sampling(*size)
            for size in ((64, 7, 5, 32, 2), (64, 32, 16, 64, 2), (16, 64, 48, 128, 4))
        ]
        rows += [
            log_probabilities(*size) for size in ((64, 6, 15), (32, 48, 5000), (16, 48, 20_000))
        ]
    print(save("summarize_feedback", "loop over time, no cache, log-softmax", rows))


if __name__ == "__main__":
    main()
