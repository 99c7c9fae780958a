import torch
from mistakes import Call, ok
from torch import nn

from ponderlearn.contrastive import seqclr

# sizes all different: B = 3 images, T = 7 frames, D or F = 4, K = 5 windows
LENGTHS = torch.tensor([7, 4, 2])
big = 1.5, 10**30
SYMBOLS = "empty", "text", "None inside", "entry less"


class Encoder(nn.Module):
    "Images (n, 2, 6, 9) to frames (n, 9, 4)."

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(2, 4, (6, 1))

    def forward(self, x):
        return self.conv(x)[:, :, 0].mT


def projection(kind="mlp"):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return seqclr.FrameProjection(4, 3, kind=kind)


def decoder():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return seqclr.AttentionDecoder(4, 10, hidden_size=6, max_steps=8)


def images():
    return torch.rand(3, 2, 6, 9)


def model():
    frames = torch.rand(3, 7, 4)
    made = Call(seqclr.FrameProjection, input_size=4, output_size=3, kind="mlp", hidden_size=5)
    return made.then(lambda net: net(frames))


def whole():
    a, b = images(), images()
    how = {"mapping": "window", "n_instances": 5, "temperature": ok(0.1, *big)}
    how |= {"same_image_negatives": True, "chunk_size": ok(6, 10**30)}
    made = Call(seqclr.SeqCLR, encoder=Encoder(), projection=projection(), **how)
    return made.then(lambda net: net(a, b))


def reader():
    frames = torch.rand(3, 7, 4)
    sizes = {"num_classes": 10, "hidden_size": 6, "max_steps": 8}
    made = Call(seqclr.AttentionDecoder, input_size=4, **sizes)
    return made.then(lambda net: net(frames))


EXAMPLES = {
    "map_to_instances": lambda: Call(
        seqclr.map_to_instances,
        frames=ok(torch.rand(3, 7, 4), "width"),
        mapping="window",
        n_instances=5,
        lengths=LENGTHS.clone(),
    ),
    "window_iou": lambda: Call(
        seqclr.window_iou, n_frames=32, n_instances=8, shift=ok(1.0, 0, 1.5, 10**30)
    ),
    "seqclr_loss": lambda: Call(
        seqclr.seqclr_loss,
        instances_a=torch.rand(3, 5, 4),
        instances_b=torch.rand(3, 5, 4),
        mask=torch.arange(5) < LENGTHS[:, None],
        temperature=ok(0.1, *big),
        same_image_negatives=True,
        chunk_size=ok(6, 10**30),
        reduction="mean",
    ),
    "seqclr_loss, other images": lambda: Call(
        seqclr.seqclr_loss,
        instances_a=torch.rand(3, 5, 4),
        instances_b=torch.rand(3, 5, 4),
        mask=torch.arange(5) < LENGTHS[:, None],
        same_image_negatives=False,
        reduction="none",
    ),
    "order_preserving_views": lambda: Call(
        seqclr.order_preserving_views,
        images=ok(torch.rand(3, 2, 6, 9), "axes swapped", "width"),
        vertical=ok(0.2, 0),
        shift=ok(0.02, *big, 0),
        scaling=ok(0.03, 0),
        shear=ok(0.24, *big, 0),
        contrast=ok(0.3, 0),
        blur=ok(0.5, 0),
        noise=ok(0.08, *big, 0),
        generator=torch.Generator().manual_seed(1),
    ),
    "FrameProjection": model,
    "FrameProjection.forward": lambda: Call(
        projection(), frames=torch.rand(3, 7, 4), lengths=LENGTHS.clone()
    ),
    "FrameProjection.forward, bilstm": lambda: Call(
        projection("bilstm"), frames=torch.rand(3, 7, 4), lengths=LENGTHS.clone()
    ),
    "SeqCLR": whole,
    "SeqCLR.forward": lambda: Call(
        seqclr.SeqCLR(Encoder(), projection(), n_instances=5),
        view_a=images(),
        view_b=images(),
        lengths=LENGTHS.clone(),
    ),
    "ctc_best_path": lambda: Call(
        seqclr.ctc_best_path,
        log_probs=ok(torch.rand(3, 7, 4), "width"),
        lengths=LENGTHS.clone(),
        blank=ok(0, 1),
    ),
    "edit_distance": lambda: Call(
        seqclr.edit_distance,
        a=ok([1, 2, 3], *SYMBOLS),  # symbols are anything that can be compared
        b=ok([1, 3, 3, 2], *SYMBOLS),
    ),
    "recognition_scores": lambda: Call(
        seqclr.recognition_scores, predictions=[[1, 2], [3]], targets=[[1, 2], [3, 3]]
    ),
    "AttentionDecoder": reader,
    "AttentionDecoder.forward": lambda: Call(
        decoder(),
        frames=torch.rand(3, 7, 4),
        targets=ok(torch.tensor([[3, 1], [2, 0], [9, 9]]), "width"),
        mask=torch.arange(7) < LENGTHS[:, None],
        return_weights=True,
    ),
    "AttentionDecoder.decode": lambda: Call(
        decoder().decode, frames=torch.rand(3, 7, 4), mask=torch.arange(7) < LENGTHS[:, None]
    ),
    "digit_strips": lambda: Call(
        seqclr.digit_strips,
        images=ok(torch.rand(9, 1, 6, 5), "axes swapped", "width"),
        labels=ok(torch.arange(9), "entry past the end"),
        n=4,
        length=(2, 3),
        height=8,
        width=20,
        generator=torch.Generator().manual_seed(1),
    ),
}
WITHOUT = {}
ALLOWED = {}
