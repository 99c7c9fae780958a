"""The prism layer and one filter beside the package `torch-dct` with a mask.

The package transforms along the last axis by FFT (`dct`, `idct`), so tokens are moved there and
back; the mask is made beforehand. Its matrix form, `LinearDCT`, is a second peer. That all agree is
checked first.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/prism.py
"""

import importlib.metadata

import torch
import torch_dct
from compare import interleaved, save

from ponderlearn.language.prism import PrismLayer, band_pass, prism_bands


def by_fft(x, mask):
    "Transform, mask, transform back; x (B, N, D), mask (D, N) or (N,)."
    coefficients = torch_dct.dct(x.transpose(1, 2), norm="ortho")
    return torch_dct.idct(coefficients * mask, norm="ortho").transpose(1, 2)


def mask_of(layer, n):
    "Which indices each neuron keeps, (D, N)."
    mask = torch.zeros(layer.embed_dim, n)
    for sector, (a, b) in zip(layer.sector_slices, prism_bands(n).values(), strict=True):
        mask[sector, a : b + 1] = 1
    return mask


def backward_too(f, x):
    "A call of f with its gradient."
    x = x.clone().requires_grad_(True)
    return lambda: torch.autograd.grad(f(x).sum(), x)


def layer_row(batch, n, d, repeats, backward=False):
    "The prism layer on (batch, n, d)."
    x, layer = torch.randn(batch, n, d, generator=torch.Generator().manual_seed(0)), PrismLayer(d)
    mask = mask_of(layer, n)
    assert torch.allclose(layer(x), by_fft(x, mask), atol=1e-4)
    pair = layer, lambda x: by_fft(x, mask)
    if backward:
        ours, theirs = (backward_too(f, x) for f in pair)
    else:
        ours, theirs = lambda: pair[0](x), lambda: pair[1](x)
    what = f"layer, {batch} x {n} x {d}" + (", with backward" if backward else "")
    return {"what": what, **interleaved(ours, theirs, repeats=repeats, warmup=2)}


def filter_row(name, batch, n, d, repeats):
    "One band of all neurons."
    x = torch.randn(batch, n, d, generator=torch.Generator().manual_seed(0))
    a, b = prism_bands(n)[name]
    mask = torch.zeros(n).index_fill(0, torch.arange(a, b + 1), 1)
    assert torch.allclose(band_pass(x, a, b), by_fft(x, mask), atol=1e-4)
    row = interleaved(
        lambda: band_pass(x, a, b), lambda: by_fft(x, mask), repeats=repeats, warmup=2
    )
    return {"what": f"{name}, {batch} x {n} x {d}", **row}


def matrix_row(batch, n, d, repeats):
    "The layer beside the package's matrices of n x n."
    x, layer = torch.randn(batch, n, d, generator=torch.Generator().manual_seed(0)), PrismLayer(d)
    mask = mask_of(layer, n)
    forth, back = (torch_dct.LinearDCT(n, kind, norm="ortho") for kind in ("dct", "idct"))

    @torch.no_grad()
    def theirs():
        return back(forth(x.transpose(1, 2)) * mask).transpose(1, 2)

    assert torch.allclose(layer(x), theirs(), atol=1e-4)
    row = interleaved(lambda: layer(x), theirs, repeats=repeats, warmup=2)
    return {"what": f"layer, {batch} x {n} x {d}, beside LinearDCT", **row}


def main() -> None:
    torch.set_num_threads(1)
    rows = [layer_row(32, 128, 64, 51), layer_row(4, 128, 768, 51), layer_row(4, 512, 768, 41)]
    rows += [layer_row(4, 512, 768, 21, backward=True), layer_row(1, 2048, 256, 31)]
    rows += [layer_row(1, 4096, 256, 15)]
    rows += [filter_row(name, 4, 512, 768, 31) for name in ("LOW", "MID", "MID-HIGH", "HIGH")]
    rows += [matrix_row(4, 512, 768, 31)]
    print(save("prism", f"torch-dct {importlib.metadata.version('torch-dct')}, with a mask", rows))


if __name__ == "__main__":
    main()
