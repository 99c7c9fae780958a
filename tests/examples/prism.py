import torch
from mistakes import Call, free, ok

from ponderlearn.language import prism

x = lambda: torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
lengths = lambda: torch.tensor([8, 3, 5])
edges = lambda: ok((2, 9, 34, 130), "entry less")
layer = lambda: prism.PrismLayer(5, (2, 9, 34, 130), reference=512, sectors=(1, 1, 1, 1, 1))
BANDS = {"slow": (0, 1), "fast": (2, 7)}

EXAMPLES = {
    "dct_matrix": lambda: Call(
        prism.dct_matrix, n=4, dtype=torch.float32, device=ok("cpu", "number")
    ),
    "dct": lambda: Call(prism.dct, x=free(x(), "half", "float64"), dim=ok(1, -1, 0), norm="ortho"),
    "idct": lambda: Call(
        prism.idct, x=free(x(), "half", "float64"), dim=ok(1, -1, 0), norm="backward"
    ),
    "cycle_length": lambda: Call(prism.cycle_length, index=ok(3, 0), length=8),
    "prism_bands": lambda: Call(prism.prism_bands, length=64, edges=edges(), reference=512),
    "band_pass": lambda: Call(
        prism.band_pass,
        x=ok(x(), "half", "float64", "axes swapped", "width"),
        low=ok(1, 0),
        high=ok(2, 10**30),
        dim=ok(1, -1),
        lengths=lengths(),
    ),
    "spectral_filter": lambda: Call(
        prism.spectral_filter,
        x=ok(x(), "half", "float64", "width"),
        weights=ok(torch.linspace(0, 1, 8), "half", "float64"),
        dim=ok(1, -1, 0),  # the error is the weights', and says the dim
        lengths=lengths(),
    ),
    "band_energy": lambda: Call(
        prism.band_energy,
        x=ok(x(), "half", "float64", "axes swapped", "width"),
        bands=ok(BANDS, "entry less"),
        dim=ok(1, -1),
        lengths=lengths(),
        center=True,
    ),
    "PrismLayer": lambda: Call(
        prism.PrismLayer, embed_dim=5, edges=(2, 9, 34, 130), reference=512, sectors=(1, 1, 1, 1, 1)
    ).then(lambda made: made.sectors),
    "PrismLayer.forward": lambda: Call(
        layer(), x=ok(x(), "half", "float64"), lengths=lengths(), mask=None
    ),
    "segment_shuffle": lambda: Call(
        prism.segment_shuffle,
        tokens=ok(torch.arange(8), "entry -1", "entry past the end"),
        labels=ok(torch.arange(8) // 4, "entry -1", "entry past the end"),
        segment=2,
        window=4,
        generator=torch.Generator().manual_seed(1),
    ),
}
WITHOUT, ALLOWED = {}, {}
