"""Random features and linear attention beside performer-pytorch, a loop and PyTorch's attention."""

import importlib.metadata
import warnings

import torch
import torch.nn.functional as F
from compare import interleaved, save

from ponderlearn.architectures.performer import (
    favor_attention,
    linear_attention,
    linear_attention_step,
    orthogonal_gaussian,
    softmax_features,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for names of torch that will go
    from performer_pytorch import performer_pytorch as peer

D, M, PEER = 64, 256, "performer-pytorch"


def row(what: str, beside: str, ours, theirs, repeats: int, grad: bool = False) -> dict:
    "One line of the table."
    with torch.set_grad_enabled(grad):
        measured = interleaved(ours, theirs, repeats=repeats, warmup=2)
    return {"what": what, "beside": beside, **measured}


def inputs(B: int, H: int, L: int) -> tuple:
    "Queries, keys, values and projections."
    torch.manual_seed(0)
    return *torch.randn(3, B, H, L, D), orthogonal_gaussian(M, D)


def features(B: int, H: int, L: int, repeats: int) -> list[dict]:
    "Features of queries and keys, and the least that any code must do for them."
    q, k, _, omega = inputs(B, H, L)

    def ours():
        return softmax_features(q, omega, role="query"), softmax_features(k, omega)

    def floor():
        scaled = D**-0.25 * omega
        return (q @ scaled.mT).exp_(), (k @ scaled.mT).exp_()

    def theirs():
        how = {"projection_matrix": omega, "device": q.device}
        return peer.softmax_kernel(q, is_query=True, **how), peer.softmax_kernel(
            k, is_query=False, **how
        )

    shape = f"{B} x {H} x {L}"
    return [
        row(f"features of queries and keys, {shape}", PEER, ours, theirs, repeats),
        row(f"a bare product and exponential, {shape}", PEER, floor, theirs, repeats),
    ]


def sums(L: int, repeats: int) -> list[dict]:
    "The sums over keys, causal and not, and the whole attention."
    q, k, v, omega = inputs(1, 2, L)
    fast = peer.FastAttention(D, M, causal=True)
    fast.projection_matrix.copy_(omega)
    a, b = (
        softmax_features(q, omega, role="query", is_causal=True),
        softmax_features(k, omega, is_causal=True),
    )
    with torch.no_grad():
        ours, theirs = linear_attention(a, b, v, is_causal=True), fast.causal_linear_fn(a, b, v)
        assert torch.allclose(ours, theirs, atol=1e-2)
    return [
        row(
            f"causal sums, 1 x 2 x {L}",
            PEER,
            lambda: linear_attention(a, b, v, is_causal=True),
            lambda: fast.causal_linear_fn(a, b, v),
            repeats,
        ),
        row(
            f"causal attention, 1 x 2 x {L}",
            PEER,
            lambda: favor_attention(q, k, v, omega, is_causal=True),
            lambda: fast(q, k, v),
            repeats,
        ),
        row(
            f"sums over all keys, 1 x 2 x {L}",
            PEER,
            lambda: linear_attention(a, b, v),
            lambda: peer.linear_attention(a, b, v),
            4 * repeats,
        ),
    ]


def training(L: int, repeats: int) -> dict:
    "Causal attention, forward and backward."
    q, k, v, omega = inputs(1, 2, L)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    fast = peer.FastAttention(D, M, causal=True)
    fast.projection_matrix.copy_(omega)
    return row(
        f"causal attention, forward and backward, 1 x 2 x {L}",
        PEER,
        lambda: torch.autograd.grad(favor_attention(*leaves, omega, is_causal=True).sum(), leaves),
        lambda: torch.autograd.grad(fast(*leaves).sum(), leaves),
        repeats,
        grad=True,
    )


def loop(repeats: int) -> dict:
    "Causal sums beside one step after the other."
    q, k, v, omega = inputs(1, 2, 1024)
    a, b = softmax_features(q, omega, is_causal=True), softmax_features(k, omega, is_causal=True)

    def steps():
        state = None
        for t in range(1024):
            out, state = linear_attention_step(state, a[:, :, t], b[:, :, t], v[:, :, t])
        return out

    ours = lambda: linear_attention(a, b, v, is_causal=True)  # noqa: E731
    return row("causal sums, 1 x 2 x 1024", "step by step", ours, steps, repeats)


def fused(L: int, causal: bool, repeats: int) -> dict:
    "Attention beside PyTorch's exact one."
    q, k, v, omega = inputs(1, 2, L)
    return row(
        f"{'causal ' if causal else ''}attention, 1 x 2 x {L}",
        "PyTorch's exact attention",
        lambda: favor_attention(q, k, v, omega, is_causal=causal),
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
        repeats,
    )


def drawing(repeats: int) -> dict:
    "Projections of 48 heads: ours all at once, theirs one after the other."
    return row(
        "projections of 48 heads, 256 x 64",
        PEER,
        lambda: orthogonal_gaussian(M, D, batch_shape=(48,)),
        lambda: [peer.gaussian_orthogonal_random_matrix(M, D) for _ in range(48)],
        repeats,
    )


def main() -> None:
    torch.set_num_threads(1)
    rows = [
        *features(1, 2, 4096, 41),
        *features(4, 8, 512, 41),
        *features(64, 8, 32, 41),
        *sums(1024, 11),
        *sums(4096, 11),
        training(1024, 11),
        loop(7),
        drawing(21),
    ]
    rows += [fused(L, False, n) for L, n in ((512, 41), (1024, 41), (4096, 11), (16384, 5))]
    rows += [fused(4096, True, 11)]
    print(save("performer", f"{PEER} {importlib.metadata.version(PEER)}", rows))


if __name__ == "__main__":
    main()
