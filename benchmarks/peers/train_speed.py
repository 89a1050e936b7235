"""Pictures a second of the training step that a user of timm writes: ViT-S/16 at 224².

    python benchmarks/peers/train_speed.py --batch 16 --threads 2

Prints a line a variant: the plain loop in fp32, the same under bf16 autocast, that with timm's fused attention off,
which on some CPUs is faster, and with --compile the faster of the two under `torch.compile`, which takes minutes to
begin.
"""

import argparse
import time

import stand_in  # noqa: F401
import timm  # pyright: ignore[reportMissingImports]
import torch
import torch.nn.functional as F

CLASSES = 10
VARIANTS = (  # name, and whether it has bf16 autocast, fused attention (None: on a GPU), and torch.compile
    ("fp32", False, True, False),
    ("bf16 autocast", True, True, False),
    ("bf16 autocast, attention not fused", True, False, False),
    ("bf16 autocast, compiled", True, None, True),
)


def pictures_a_second(half: bool, fused: bool | None, compiled: bool, batch: int, steps: int, device: str) -> float:
    """The rate over `steps` steps with one batch, after two that are not timed."""
    timm.layers.set_fused_attn(device != "cpu" if fused is None else fused)
    model = timm.create_model("vit_small_patch16_224", num_classes=CLASSES).to(device)
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x, y = torch.randn(batch, 3, 224, 224, device=device), torch.randint(0, CLASSES, (batch,), device=device)
    start = 0.0
    for number in range(2 + steps):
        if number == 2:
            synchronise(device)
            start = time.perf_counter()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    synchronise(device)
    return steps * batch / (time.perf_counter() - start)


def synchronise(device: str) -> None:
    """Waits until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    """Prints the name of each variant, a tab, and its rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name, half, fused, compiled in VARIANTS:
        if options.compile or not compiled:
            rate = pictures_a_second(half, fused, compiled, options.batch, options.steps, options.device)
            print(f"{name}\t{rate:.2f}")


if __name__ == "__main__":
    main()
