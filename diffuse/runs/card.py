"""The model card of an export: what the run knows of its weights, in Markdown."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffuse
from diffuse.data.images import ImageKind
from diffuse.options.reference import option_with
from diffuse.runs.history import HISTORY
from diffuse.runs.trained import POWER, TrainedNetwork

LONGEST = 60  # characters of the value of a key in the table of scores
WITH_LABELS = "diffusers with labels"  # for which its pipeline has no argument
HOW_TO_LOAD = {
    "diffusers": """```python
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("FOLDER")
images = pipeline(batch_size=4, num_inference_steps=LEVELS).images
```""",
    WITH_LABELS: """```python
import torch
from diffusers import DDPMScheduler, UNet2DModel

net = UNet2DModel.from_pretrained("FOLDER/unet")
scheduler = DDPMScheduler.from_pretrained("FOLDER/scheduler")
scheduler.set_timesteps(LEVELS)
labels, x = torch.arange(4) % CLASSES, torch.randn(4, SHAPE)
for t in scheduler.timesteps:
    with torch.no_grad():
        output = net(x, t, class_labels=labels).sample
    x = scheduler.step(output, t, x).prev_sample
images = (x / 2 + 0.5).clamp(0, 1)
```""",
    "safetensors": """```bash
diffuse sample ckpt=FOLDER/model.safetensors n=64
```""",
    "improved_diffusion": """```bash
python scripts/image_sample.py --model_path FOLDER/model.pt $(head -n 1 FOLDER/flags.txt)
```""",
}


def card(network: TrainedNetwork, to: str, licence: str | None) -> str:
    """The text of README.md beside exported weights."""
    config, kind = network.config, network.kind
    parameters = sum(weight.numel() for weight in network.net.parameters())
    front = {"library_name": to, "license": licence or "unknown", "tags": ["diffusion", f"{kind.height}x{kind.width}"]}
    null = "; the last row of the table of labels is no class, for guidance" if config.label_dropout else ""
    classes = f", {len(kind.classes)} classes{null}" if config.class_conditional else ", without labels"
    border = f" The network sees a black border of {kind.pad} pixels around each image, which its samples have too."
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        "",
        f"# {config.name or network.home.name}",
        "",
        f"A diffusion model of {kind.name}: images of {kind.in_words}{classes}." + (border if kind.pad else ""),
        *units_of(kind),
        "",
        "| | |",
        "|---|---|",
        f"| network | U-Net, {parameters:,} parameters |",
        f"| noise schedule | {option_with('schedule', config.schedule['_target_'])} |",
        f"| predicts | {config.prediction['_target_']}, variance {config.variance} |",
        f"| weights | {averaging(network.known_as)} |",
        *(f"| {name} | {value} |" for name, value in training_facts(network)),
        f"| licence | {licence or 'not stated'} |",
        f"| exported by | diffuse {diffuse.__version__}, of a file with the SHA-256 {network.sha256} |",
        "",
        *scores(network),
        "## How to load it",
        "",
        how_to_load(network, to),
        "",
    ]
    return "\n".join(lines)


def how_to_load(network: TrainedNetwork, to: str) -> str:
    """Lines that load the weights and draw images."""
    kind = network.kind
    text = HOW_TO_LOAD[WITH_LABELS if to == "diffusers" and network.config.class_conditional else to]
    for word, value in {
        "LEVELS": network.schedule.T,
        "CLASSES": len(kind.classes),
        "SHAPE": ", ".join(map(str, kind.shape)),
    }.items():
        text = text.replace(word, str(value))
    return text


def averaging(weights: str) -> str:
    """Which weights they are, in words; "" where it is not known."""
    if not weights:
        return "as their file has them"
    if weights == "model":
        return "as trained, not averaged"
    length = weights.removeprefix(POWER)
    return "averaged over training" + (f", a power average of length {length}" if length != weights else "")


def units_of(kind: ImageKind) -> Iterator[str]:
    """How to get from what the network draws to the values of the data set, where that is not usual."""
    if kind.scale:
        of_channels = ", ".join(
            f"{shift:.9g} + {scale:.9g} x" for shift, scale in zip(kind.shift, kind.scale, strict=True)
        )
        yield f"\nIts values are not pixels: x of the network stands, channel by channel, for {of_channels}."


def training_facts(network: TrainedNetwork) -> Iterator[tuple[str, str]]:
    """How it was trained; of other programs' weights where they come from."""
    config = network.config
    if network.origin:
        yield "made from", network.origin
        return
    yield "trained on", f"{network.kind.name} (SHA-256 of the training images {network.data_sha256.get('train', '')})"
    yield "steps", f"{network.step:,} of {config.batch_size} images"
    if command := first_command(network.home / HISTORY):
        yield "command", f"`{command}`"


def first_command(history: Path) -> str | None:
    """The command that began a run."""
    try:
        with history.open(encoding="utf-8") as lines:
            return str(json.loads(lines.readline())["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scores(network: TrainedNetwork) -> Iterator[str]:
    """A table of the scores of this very checkpoint, with what they depend on; nothing where there are none."""
    rows = [row for path in sorted(network.home.glob("eval/*/eval.json")) for row in rows_of(path, network)]
    if rows:
        yield from (
            "## Scores",
            "",
            "| score | value | images | against | drawn by | seed |",
            "|---|--:|--:|---|---|--:|",
        )
        yield from dict.fromkeys(rows)
        yield ""


def rows_of(path: Path, network: TrainedNetwork) -> Iterator[str]:
    """A row for each score of one evaluation."""
    try:
        facts: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (facts["checkpoint_sha256"], facts["weights"]) != (network.sha256, network.weights):
            return
        protocol = facts.get("sample_protocol", {})
        samples, reference = protocol.get("samples", {}), protocol.get("reference", {})
        drawn = drawn_by(samples)
        for name, found in facts.get("sample_scores", {}).items():
            cells = (name, f"{found['value']:.4g}", f"{found['n']:,}", reference.get("name", ""), drawn)
            yield f"| {' | '.join(cells)} | {samples.get('seed', '')} |"
        for name in ("bound", "ode"):
            for key, value in facts["values"].get(name, {}).items():
                yield f"| {key} | {value:.4g} | {facts['protocol']['n']:,} | test split | | {facts['asked']['seed']} |"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return


def drawn_by(samples: Mapping[str, Any]) -> str:
    """The sampler of scored images with all its options, the guidance, and the label if all have one."""
    found = [described(group, samples[group]) for group in ("sampler", "guidance") if samples.get(group)]
    labels = samples.get("label") or []
    return "; ".join([*found, *([f"label {labels[0]}"] if len(labels) == 1 else [])])


def described(group: str, node: Mapping[str, Any]) -> str:
    """An option of a group with its keys."""
    keys = (f"{key} {str(value)[:LONGEST]}" for key, value in node.items() if key != "_target_" and value is not None)
    return ", ".join([option_with(group, node["_target_"]), *keys])
