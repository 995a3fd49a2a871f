"""Checks that `peer.py` computes what the trainer does: `peer.py --self-test`, on the CPU.

Losses, networks, gradients and image operations against the golden vectors of `tests/parity` (its
README says what they are and gives the tolerances); two processes against one on the same global
batch; compiled against eager. The golden losses that the recipe's form does not cover are skipped
by name: dot products, clamps, both directions and positives in the denominator are options of the
trainer that no preset uses. Needs the package safetensors.
"""

import json
import os
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import peer_views as views
from peer_model import Decoder, Rates, Resnet18, Vit, VitShape
from peer_step import Build, TrainingLoss, contrastive_loss, replicated, training_step

PARITY = Path(__file__).resolve().parent.parent / "tests" / "parity"
RECIPE = {
    "similarity": "cosine",
    "clamp_positive_logits": None,
    "positives_in_denominator": False,
    "both_directions": False,
    "attract": 1.0,
}
STILL = Rates(0, 0, 0)
CPU = torch.device("cpu")


def metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})


def folder(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What a file holds under `prefix/`, without the prefix."""
    start = prefix + "/"
    return {
        name.removeprefix(start): one for name, one in tensors.items() if name.startswith(start)
    }


def close(what: str, found: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    """tests/parity's tolerance: |a - b| <= 1e-6 + 1e-4 |b| unless said otherwise."""
    torch.testing.assert_close(
        found.detach().double(),
        expected.double().reshape(found.shape),
        rtol=relative,
        atol=1e-6,
        msg=lambda why: f"{what}: {why}",
    )


def golden_losses() -> str:
    path = PARITY / "losses_exact.safetensors"
    tensors, checked, skipped = load_file(path), [], []
    for name, text in sorted(metadata(path).items()):
        options = json.loads(text)["options"]
        if any(options[key] != value for key, value in RECIPE.items()):
            skipped.append(name)
            continue
        case = folder(tensors, name)
        pairs = torch.stack([case["view0"], case["view1"]], 1).requires_grad_()
        labels = case["labels"]
        alone = -2 - torch.arange(len(labels))
        labels = torch.where(labels == -1, alone, labels)
        loss = contrastive_loss(pairs, labels, options["spread"], options["temperature"])
        loss.backward()
        close(f"{name} loss", loss, case["loss"][0], 1e-5)
        for view in (0, 1):
            close(f"{name} gradient of view {view}", pairs.grad[:, view], case[f"grad_view{view}"])
        checked.append(name)
    if not {"cosine_attract", "cosine_attract_and_spread"} <= set(checked):
        raise AssertionError(f"{path} lacks the recipe's losses: it has {checked} and {skipped}")
    return f"checked {', '.join(checked)}; skipped {', '.join(skipped)}"


# The published code's names to those of `Vit`, in this order.
RENAMED = [
    (r"^pre\.emb\.0\.", "patches."),
    (r"^pre\.emb\.1\.", "patches_norm."),
    (r"^enc\.pe$", "positions"),
    (r"^enc\.cls_token$", "cls_token"),
    (r"^enc\.f\.(\d+)\.mha\.f\.norm\.", r"blocks.\1.attention_norm."),
    (r"^enc\.f\.(\d+)\.mha\.f\.f\.qkv\.", r"blocks.\1.qkv."),
    (r"^enc\.f\.(\d+)\.ffn\.f\.norm\.", r"blocks.\1.mlp_norm."),
    (r"^enc\.f\.(\d+)\.ffn\.f\.f\.f\.0\.", r"blocks.\1.mlp_in."),
    (r"^enc\.f\.(\d+)\.ffn\.f\.f\.f\.3\.", r"blocks.\1.mlp_out."),
    (r"^enc\.f\.\d+\.", "norm."),
]


def renamed(name: str) -> str:
    for pattern, new in RENAMED:
        name, found = re.subn(pattern, new, name)
        if found:
            break
    return name


def golden_vit(file: str, all_tokens: bool) -> str:
    path = PARITY / file
    tensors, config = load_file(path), json.loads(metadata(path)["config"])
    shape = VitShape(
        channels=config["channels"],
        side=config["image_side"],
        patch=config["patch"],
        width=config["d_model"],
        depth=config["n_layers"],
        heads=config["n_heads"],
        mlp=config["mlp_dim"],
    )
    weights = {renamed(name): weight for name, weight in folder(tensors, "weights").items()}
    head = {name: weights.pop(f"cls.{name}") for name in ("weight", "bias")}
    vit = Vit(shape, STILL, all_tokens)
    vit.load_state_dict(weights)
    # As the vectors were computed: their tolerance is below the rounding of float32 sums.
    embedding = vit.double()(tensors["images"].double())
    close("embedding", embedding, tensors["embedding"])
    close(
        "logits",
        F.linear(embedding, head["weight"].double(), head["bias"].double()),
        tensors["logits"],
    )
    (embedding * tensors["cotangent"]).sum().backward()
    gradients = {renamed(name): gradient for name, gradient in folder(tensors, "grads").items()}
    for name, parameter in vit.named_parameters():
        close(f"gradient of {name}", parameter.grad, gradients[name])
    return f"embedding, logits and {len(gradients)} gradients"


def golden_decoder() -> str:
    path = PARITY / "decoder32.safetensors"
    tensors, data = load_file(path), metadata(path)
    config = json.loads(data["config"])
    decoder = Decoder(config["d_input"], side=config["side"]).double()
    parameters = dict(decoder.named_parameters())
    names = [name.removeprefix("decoder.") for name, _ in json.loads(data["parameters"])]
    if sorted(names) != sorted(parameters):
        raise AssertionError(f"parameters {sorted(parameters)}, expected {sorted(names)}")
    with torch.no_grad():
        for place, name in enumerate(names):
            one = parameters[name]
            s = torch.sin(0.7 * torch.arange(one.numel(), dtype=torch.float64) + place)
            if one.dim() > 1:
                s = s / (one.numel() / len(one)) ** 0.5
            else:
                s = 1 + 0.1 * s if name.endswith("weight") else 0.1 * s
            one.copy_(s.view(one.shape))
    z = tensors["z"].double().requires_grad_()
    reconstructed = decoder.train()(z)
    close("reconstruction", reconstructed, tensors["reconstruction_train"])
    loss = F.mse_loss(reconstructed, tensors["target"].double())
    close("MSE", loss, tensors["mse"][0], 1e-5)
    loss.backward()
    close("gradient of z", z.grad, tensors["grad_z"])
    squares = torch.stack([parameters[name].grad.double().square().sum() for name in names])
    close("squared gradients", squares, tensors["grad_square_sums"])
    state = decoder.state_dict()
    for name, expected in folder(tensors, "after_one_step").items():
        close(name, state[name.removeprefix("decoder.")], expected)
    with torch.no_grad():
        close("evaluation", decoder.eval()(z), tensors["reconstruction_eval"])
    return f"reconstruction, MSE and {len(names)} gradients"


def golden_views() -> str:
    tensors = load_file(PARITY / "augment.safetensors")
    (listed,) = [name for name in tensors if name.startswith("params_")]
    columns = dict(
        zip(listed.removeprefix("params_").split("_"), tensors[listed].float().unbind(1))
    )
    boxes = torch.stack([columns[name] for name in ("top", "left", "height", "width")], 1)
    factor = {name: column[:, None, None, None] for name, column in columns.items()}
    whole = torch.tensor([0.0, 0.0, 32.0, 32.0]).expand(len(boxes), 4)
    never = torch.zeros(len(boxes), dtype=torch.bool)
    operations: dict[str, Callable[[Tensor], Tensor]] = {
        "crop": lambda x: views.cropped(x, boxes, never),
        "flip": lambda x: views.cropped(x, whole, ~never),
        "brightness": lambda x: views.brightened(x, factor["brightness"]),
        "contrast": lambda x: views.contrasted(x, factor["contrast"]),
        "saturation": lambda x: views.saturated(x, factor["saturation"]),
        "hue": lambda x: views.hue_turned(x, factor["hue"]),
        "gray": lambda x: views.gray(x).expand_as(x),
    }
    images = tensors["images_u8"].float() / 255
    stages, chains = folder(tensors, "stage"), folder(tensors, "chain")
    for name, expected in {**stages, **chains}.items():
        found = images
        for operation in name.split("_"):
            found = operations[operation](found)
        # Positions in float32, times the contrast of neighbouring pixels.
        torch.testing.assert_close(
            found, expected, rtol=0, atol=2e-5, msg=lambda why: f"{name}: {why}"
        )
    return f"{len(stages)} operations and {len(chains)} chains"


def drawn_views() -> str:
    """Ranges of what is drawn, and that one blend a place does what the single operations do."""
    torch.manual_seed(0)
    n, side = 20_000, 32
    top, left, height, width = views.random_boxes(n, side, CPU).unbind(1)
    inside = (top >= 0) & (left >= 0) & (top + height <= side) & (left + width <= side)
    share = height * width / side**2
    if not inside.all() or share.min() < 0.17 or not 0.5 < share.mean() < 0.6:
        raise AssertionError(
            f"crops cover {share.min():.3f} to {share.max():.3f}, {share.mean():.3f} on average"
        )
    images = torch.randint(0, 256, (64, 3, side, side), dtype=torch.uint8)
    made = views.random_views(images)
    device = made.device
    made = made * views.per_channel(views.STD, device) + views.per_channel(views.MEAN, device)
    if made.min() < -1e-5 or made.max() > 1 + 1e-5 or made.std() < 0.05:
        raise AssertionError(
            f"views from {made.min()} to {made.max()}, standard deviation {made.std()}"
        )
    return "crops and values are within their ranges"


def small(method: str, rates: Rates = STILL) -> TrainingLoss:
    """A network with every kind of layer, from the same initial weights at each call."""
    torch.manual_seed(0)
    vit = Vit(VitShape(width=32, depth=2, heads=4, mlp=64), rates, all_tokens=False)
    decoder = Decoder(32, width=64) if method == "cae" else None
    return TrainingLoss(vit, method, bf16=False, decoder=decoder).train()


def small_batch(images: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(2 * images, 3, 32, 32, generator=generator)
    return batch, torch.randint(0, 2, (images,), generator=generator)


def own_share(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """This process's views and labels of a global batch."""
    if not dist.is_initialized():
        return batch
    own, world = dist.get_rank(), dist.get_world_size()
    return batch[0].chunk(world)[own], batch[1].chunk(world)[own]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Of the mean loss over the processes, and that loss; in float64, as batch norm of a few
    images amplifies rounding.
    """
    # Held until the gradients are there: DDP's hooks go with it.
    trained = replicated(module.double())
    images, labels = small_batch()
    loss = trained(*own_share((images.double(), labels)))
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    mean = loss.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return {**found, "loss": mean}


def resnet(method: str) -> TrainingLoss:
    torch.manual_seed(0)
    return TrainingLoss(Resnet18(), method, bf16=False, decoder=None).train()


BUILDERS: dict[str, Callable[[], TrainingLoss]] = {
    "supcon": lambda: small("supcon"),
    "cnce": lambda: small("cnce"),
    "cae": lambda: small("cae"),
    "resnet18": lambda: resnet("cnce"),
}


def one_of_two(rank: int, where: str, what: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{where}/rendezvous", rank=rank, world_size=2
    )
    found = gradients(BUILDERS[what]())
    if rank == 1:
        torch.save(found, f"{where}/gradients.pt")
    dist.destroy_process_group()


def two_processes(what: str) -> str:
    alone = gradients(BUILDERS[what]())
    with tempfile.TemporaryDirectory(prefix="peer-") as where:
        multiprocessing.start_processes(one_of_two, (where, what), 2, start_method="spawn")
        both = torch.load(f"{where}/gradients.pt")
    for name, expected in alone.items():
        torch.testing.assert_close(
            both[name], expected, rtol=1e-7, atol=1e-10, msg=lambda why: f"{name}: {why}"
        )
    return f"loss and {len(alone) - 1} gradients of two processes are those of one"


def losses(mode: str, steps: int = 3) -> Tensor:
    """With dropout: on the CPU a compiled step draws what an eager one does."""
    module = small("cnce", Rates())
    build = Build("vit", "cnce", mode, "float32", CPU)
    batch = small_batch()
    step = training_step(build, module, lambda: batch)
    return torch.stack([step() for _ in range(steps)])


def compiled() -> str:
    eager, other = losses("eager"), losses("compile")
    close("losses of three steps", other, eager, 1e-5)
    if not eager[2] < eager[0]:
        raise AssertionError(
            f"three steps on the same batch did not lower the loss: {eager.tolist()}"
        )
    return f"three steps, losses {', '.join(f'{loss:.6f}' for loss in other.tolist())}"


CHECKS: dict[str, Callable[[], str]] = {
    "golden losses": golden_losses,
    "golden vit_rgb16": lambda: golden_vit("vit_rgb16.safetensors", False),
    "golden vit_rgb16, all tokens": lambda: golden_vit("vit_rgb16.safetensors", True),
    "golden vit_gray28": lambda: golden_vit("vit_gray28.safetensors", False),
    "golden decoder32": golden_decoder,
    "golden image operations": golden_views,
    "views": drawn_views,
    **{f"two processes, {what}": lambda what=what: two_processes(what) for what in BUILDERS},
    "compile is eager": compiled,
}


def self_test() -> int:
    """Prints a line a check; the exit code: 0 if all passed, else 1."""
    torch.set_num_threads(1)
    failed = 0
    for name, check in CHECKS.items():
        try:
            print(f"ok: {name}: {check()}", flush=True)
        except AssertionError as why:
            failed += 1
            print(f"FAILED: {name}: {why}", flush=True)
    return int(failed > 0)
