"""SeqCLR's windows beside loops over rows and cumulative sums; its loss beside the published form.

There is no package to set it beside. The published loss (amazon-science/semimtr-text-recognition,
rewritten here in its structure) takes the sum of all exponentials less the anchor's own, from one
table; both are compared before they are timed, at a temperature where it does not cancel. Windows:
rows of 1 to T real frames. Memory is what torch's profiler says that one
update of the loss holds at most.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/seqclr.py
"""

import torch
import torch.nn.functional as F
from compare import interleaved, peak_megabytes, save

from ponderlearn.contrastive.seqclr import map_to_instances, seqclr_loss


def loop(frames: torch.Tensor, lengths: torch.Tensor, K: int) -> torch.Tensor:
    "PyTorch's adaptive pooling, row by row; short rows are filled up."
    rows = []
    for row, n in zip(frames, lengths.tolist(), strict=True):
        own = min(K, n)
        z = F.adaptive_avg_pool1d(row[:n].t(), own).t()
        rows.append(F.pad(z, (0, 0, 0, K - own)))
    return torch.stack(rows)


def sums(frames: torch.Tensor, lengths: torch.Tensor, K: int) -> torch.Tensor:
    "Differences of cumulative sums."
    total = F.pad(frames.cumsum(1), (0, 0, 1, 0))
    own = lengths.clamp(max=K)[:, None]
    k = torch.arange(K).expand(len(lengths), K).minimum(own - 1)
    start, end = k * lengths[:, None] // own, ((k + 1) * lengths[:, None] + own - 1) // own
    picked = [total.gather(1, i[..., None].expand(-1, -1, frames.shape[-1])) for i in (start, end)]
    z = (picked[1] - picked[0]) / (end - start)[..., None]
    return torch.where((torch.arange(K) < own)[..., None], z, 0)


def ours(frames: torch.Tensor, lengths: torch.Tensor, K: int) -> torch.Tensor:
    return map_to_instances(frames, n_instances=K, lengths=lengths).instances


def windows(B: int, T: int, D: int, K: int, repeats: int) -> list[dict]:
    torch.manual_seed(0)
    frames = torch.randn(B, T, D).requires_grad_()
    lengths = torch.randint(1, T + 1, (B,))
    grad = torch.randn(B, K, D)

    def update(f):
        z = f(frames, lengths, K)
        return z, *torch.autograd.grad(z, frames, grad)

    rows = []
    for name, peer in {"loop over rows": loop, "cumulative sums": sums}.items():
        for a, b in zip(update(ours), update(peer), strict=True):
            assert torch.allclose(a, b, atol=1e-3), (name, B, T)
        what = f"B = {B}, T = {T}, K = {K}"
        with torch.no_grad():
            found = interleaved(
                lambda: ours(frames, lengths, K),
                lambda p=peer: p(frames, lengths, K),
                repeats=repeats,
            )
        rows.append({"what": f"windows, {what}", "beside": name, **found})
        found = interleaved(lambda: update(ours), lambda p=peer: update(p), repeats=repeats)
        rows.append({"what": f"windows with gradient, {what}", "beside": name, **found})
    return rows


def published(a: torch.Tensor, b: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    z = F.normalize(torch.cat([a.flatten(0, 1), b.flatten(0, 1)]), dim=1)
    n = len(z) // 2
    powers = torch.exp(z @ z.t() / temperature)
    positive = torch.exp((z[:n] * z[n:]).sum(1) / temperature).repeat(2)
    own = torch.exp(torch.ones(2 * n) / temperature)
    return -torch.log(positive / (powers.sum(1) - own)).mean()


def losses(B: int, K: int, chunk_size, repeats: int) -> dict:
    torch.manual_seed(0)
    a = torch.randn(B, K, 48).requires_grad_()
    b = (a + 0.5 * torch.randn(B, K, 48)).detach().requires_grad_()

    def update(f):
        loss = f(a, b)
        return loss, *torch.autograd.grad(loss, (a, b))

    def mine(a, b):
        return seqclr_loss(a, b, chunk_size=chunk_size)

    for x, y in zip(update(mine), update(published), strict=True):
        assert torch.allclose(x, y, atol=1e-4), (B, K)
    found = interleaved(lambda: update(mine), lambda: update(published), repeats=repeats, warmup=2)
    memory = [round(peak_megabytes(lambda f=f: update(f))) for f in (mine, published)]
    how = "in one piece" if chunk_size is None else f"chunks of {chunk_size}"
    what = f"loss, N = {B * K}, {how} ({memory[0]} MB against {memory[1]} MB)"
    return {"what": what, "beside": "published form", **found}


def main() -> None:
    torch.set_num_threads(1)
    rows = [r for s in ((32, 32, 48, 8, 201), (256, 64, 128, 8, 101)) for r in windows(*s)]
    rows += [losses(32, 8, None, 101), losses(128, 32, 256, 7)]
    print(save("seqclr", "plain forms, and the published loss", rows))


if __name__ == "__main__":
    main()
