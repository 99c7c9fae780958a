import torch
from mistakes import Call, free, ok

from ponderlearn.architectures import perceiver
from ponderlearn.architectures.perceiver import CrossAttention, LatentTransformer, Perceiver


def key_mask():
    return ok(
        torch.tensor([[True, False, True, True], [True] * 4, [False, True, True, False]]), None
    )


def net():
    torch.manual_seed(0)
    sizes = {"n_latents": 6, "embed_dim": 8, "n_iterations": 2, "num_layers": 1, "latent_heads": 2}
    return Perceiver(5, 7, **sizes)


def made(cls, *example, **arguments):
    "A constructor, used once."
    return Call(cls, **arguments).then(lambda module: module(*example))


EXAMPLES = {
    "fourier_features": lambda: Call(
        perceiver.fourier_features,
        coords=free(torch.rand(3, 2)),
        n_bands=3,
        max_resolution=ok(8.0, 1.5, 10**30),
        concat_positions=True,
        sine_only=False,
    ),
    "fourier_positions": lambda: Call(
        perceiver.fourier_positions,
        shape=(3, 4),
        n_bands=3,
        coords=None,
        max_resolution=ok((3, 4), None, "number", "first alone"),
        concat_positions=True,
        sine_only=False,
        device=torch.device("cpu"),
        dtype=torch.float32,
    ),
    "byte_array": lambda: Call(
        perceiver.byte_array,
        x=ok(torch.rand(3, 2, 4, 1), "width"),
        positions=ok(torch.rand(8, 5), "width"),
    ),
    "join_modalities": lambda: Call(
        perceiver.join_modalities,
        arrays=[torch.rand(3, 4, 2), torch.rand(3, 5, 6)],
        embeddings=[torch.rand(7), torch.rand(3)],
    ),
    "CrossAttention": lambda: made(
        CrossAttention,
        torch.rand(3, 6, 8),
        torch.rand(3, 4, 5),
        embed_dim=8,
        input_size=5,
        num_heads=2,
        qkv_dim=4,
        mlp_ratio=2,
        dropout=ok(0.0, 0),
    ),
    "CrossAttention.forward": lambda: Call(
        CrossAttention(8, 5),
        z=torch.rand(3, 6, 8),
        x=torch.rand(3, 4, 5),
        key_mask=key_mask(),
        return_weights=False,
    ),
    "LatentTransformer": lambda: made(
        LatentTransformer,
        torch.rand(3, 6, 8),
        embed_dim=8,
        num_layers=2,
        num_heads=4,
        mlp_ratio=2,
        dropout=ok(0.0, 0),
    ),
    "LatentTransformer.forward": lambda: Call(
        LatentTransformer(8, 2, num_heads=2), z=torch.rand(3, 6, 8)
    ),
    "Perceiver": lambda: made(
        Perceiver,
        torch.rand(3, 4, 5),
        input_size=5,
        num_classes=7,
        n_latents=6,
        embed_dim=8,
        n_iterations=2,
        num_layers=2,
        cross_heads=2,
        latent_heads=4,
        qkv_dim=4,
        mlp_ratio=2,
        dropout=ok(0.0, 0),
        share_weights=True,
        share_first=False,
        latent_std=ok(0.02, 0, 1.5, 10**30),
    ),
    "Perceiver.forward": lambda: Call(
        net(), x=torch.rand(3, 4, 5), key_mask=key_mask(), return_latents=False
    ),
    "Perceiver.attention_maps": lambda: Call(
        net().attention_maps, x=torch.rand(3, 4, 5), key_mask=key_mask()
    ),
    "perceiver_flops": lambda: Call(
        perceiver.perceiver_flops,
        n_elements=4,
        input_size=5,
        num_classes=7,
        n_latents=6,
        embed_dim=8,
        n_iterations=2,
        num_layers=2,
        cross_heads=2,
        qkv_dim=4,
        mlp_ratio=2,
        share_weights=True,
        share_first=False,
    ),
}
ALLOWED = {}
