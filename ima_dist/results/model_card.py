"""The card of a trained network as a page for people: README.md as Hugging Face reads it."""

from typing import Any

import yaml

from ima_dist.config.attacks import describe_attack
from ima_dist.config.schema import EXTERNAL
from ima_dist.results.by_class import (
    BY_CLASS,
    OVERALL,
    THRESHOLDS,
    cells,
    class_rows,
    conditions,
    overall_rows,
    threshold_rows,
)
from ima_dist.results.performance import Performance
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.curves import format_noise

_USE = {
    "onnx": """With onnxruntime, without torch:

```python
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {{"x": x}})  # x: float32, shape (N, {shape})
names = json.load(open("config.json"))["id2label"]
print([names[str(label)] for label in logits.argmax(1)])
```
""",
    "torch": """With torch, without other packages:

```python
import torch

network = torch.export.load("model.pt2").module()  # this unpickles: only for files that you trust
logits = network(x)  # x: {dtype}, shape (N, {shape})
```
""",
}


def readme(card: dict[str, Any], formats: tuple[str, ...], checks: dict[str, Any]) -> str:
    """The page. ``formats``: of ``ima_dist.export``. ``checks``: what it has compared, by format."""
    data, shape = card["data"], ", ".join(map(str, card["data"]["shape"]))
    image = len(data["shape"]) == 3
    use = [_USE[name].format(shape=shape, dtype=card["network"]["dtype"]) for name in formats if name in _USE]
    names, argument = data["class_names"], '["image.png"]' if image else "x"
    parts = [
        _front_matter(card, image, formats),
        f"# {card['name']}",
        _what(card),
        "Classes: " + (", ".join(names) if names else "numbered from 0") + ".",
        "## Accuracy",
        *_accuracy(card),
        *_by_class(card),
        "## Warnings",
        _listed(card["warnings"]) or "None was found.",
        "## Limits",
        _listed(card["limits"]),
        "## Use",
        "With `ima_dist` installed:",
        '```python\nimport ima_dist\n\nclassifier = ima_dist.load("DIR")  # this directory\n'
        f"labels, probabilities = classifier.predict({argument})\n```",
        *use,
        f"Samples are floating point, (N, {shape})" + _range(data) + _image_note(data, image) + ".",
        *_checked(checks),
        "## Data",
        _data(data),
        "## Network" if card["method"] == EXTERNAL else "## Training",
        f"`{card['network']['factory']}`, {card['network']['parameters'] or 'an unknown number of'} parameters. "
        "Settings that differ from those of the preset:",
        "\n".join(f"- `{name}`: {value}" for name, value in card["settings"].items()),
        f"To {'train, ' * (card['method'] != EXTERNAL)}evaluate and export it again:",
        "```\n" + "\n".join(card["reproduce"]) + "\n```",
        "Made with " + ", ".join(f"{name} {version}" for name, version in card["versions"].items() if version) + ".",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _what(card: dict[str, Any]) -> str:
    of = f"A classifier for {card['data']['name']},"
    if card["method"] == EXTERNAL:
        return f"{of} trained elsewhere; its robustness under {NORM_SIGN[card['norm']]} perturbations was measured."
    return (
        f"{of} trained with `{card['method']}` for robustness under {NORM_SIGN[card['norm']]} perturbations up to "
        f"{format_noise(card['eps_max'])}. These are the weights after epoch {card['epoch']} of {card['epochs']}."
    )


def _front_matter(card: dict[str, Any], image: bool, formats: tuple[str, ...]) -> str:
    task = "image-classification" if image else "tabular-classification"
    metrics = [
        {
            "type": "accuracy",
            "value": entry["accuracy"],
            "name": f"accuracy under {entry['attack']}, {entry['norm']} {format_noise(entry['noise'])}",
        }
        for entry in card["accuracies"]
    ]
    if card["clean_accuracy"]:
        metrics.insert(0, {"type": "accuracy", "value": card["clean_accuracy"]["accuracy"], "name": "clean accuracy"})
    head: dict[str, Any] = {
        "library_name": "ima_dist",
        "pipeline_tag": task,
        "tags": ["adversarial-robustness", card["method"], *sorted(set(formats))],
    }
    if metrics:
        dataset = {"name": card["data"]["name"], "type": card["data"]["name"], "split": "test"}
        results = [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]
        head["model-index"] = [{"name": card["name"], "results": results}]
    return "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---"


def _accuracy(card: dict[str, Any]) -> list[str]:
    found = []
    clean, validation = card["clean_accuracy"], card["validation_accuracy"]
    if clean:
        low, high = clean["interval"]
        found.append(
            f"Without noise: {clean['accuracy']:.4f} of {clean['samples']:,} test samples (95 % interval {low:.4f} to "
            f"{high:.4f})."
        )
    if validation is not None:
        found.append(f"On validation samples, without noise: {validation:.4f}.")
    if not card["accuracies"]:
        return [*found, "It has not been attacked."]
    lines = ["| attack | noise | accuracy | 95 % interval | samples |", "| --- | --- | --- | --- | --- |"]
    for entry in card["accuracies"]:
        low, high = entry["interval"]
        lines.append(
            f"| {entry['attack']} | {NORM_SIGN[entry['norm']]} {format_noise(entry['noise'])} | "
            f"{entry['accuracy']:.4f} | {low:.4f} to {high:.4f} | {entry['samples']:,} |"
        )
    attacks = {entry["attack"]: f"{describe_attack(entry)}." for entry in card["accuracies"]}
    return [*found, "\n".join(lines), _listed([*attacks.values()])]


def _by_class(card: dict[str, Any]) -> list[str]:
    """Tables by class without noise, and of all classes together; none for a run of an earlier version."""
    entries = [Performance.from_json(entry) for entry in card["by_class"]]
    if not entries:
        return []
    names: list[str] = card["data"]["class_names"] or []
    parts = ["## By class"]
    if entries[0].classes:
        title = f"Each class against the rest, {conditions(entries[0])}:"
        parts += [title, _table(BY_CLASS, class_rows(entries[0], names))]
    note = (
        "AUC: the mean over the classes, each against the rest. ECE: the expected calibration error, the mean distance "
        "between the largest probability and the share of right answers. In brackets: 95 % intervals."
    )
    parts += [_table(OVERALL, overall_rows(entries)), note]
    if card["thresholds"]:
        title = f"Thresholds on the probability of {names[1]}, chosen on validation samples:"
        parts += [title, _table(THRESHOLDS, threshold_rows(card["thresholds"]))]
    return parts


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    texts = [[cell.replace("|", "\\|") for cell in cells(row, columns)] for row in rows]
    lines = [columns, ["---"] * len(columns), *texts]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _data(data: dict[str, Any]) -> str:
    lines = ["| split | samples | checksum |", "| --- | --- | --- |"]
    lines += [f"| {name} | {part['samples']:,} | {part['digest']} |" for name, part in data["splits"].items()]
    level = data["split_level"]
    return f"`{data['source']}`. Split by: {level}. The checksum of all: {data['digest']}.\n\n" + "\n".join(lines)


def _range(data: dict[str, Any]) -> str:
    return f", from {data['box'][0]:g} to {data['box'][1]:g}" if data["box"] else ""


def _image_note(data: dict[str, Any], image: bool) -> str:
    if not image or data["box"] != [0.0, 1.0]:
        return ""
    channels, height, width = data["shape"]
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    return f": {colour} images, resized to {height} × {width} (Pillow's bilinear filter), divided by 255"


def _checked(checks: dict[str, Any]) -> list[str]:
    return [
        f"`{name}` was compared with PyTorch on {found['samples']} test samples, clean and attacked: logits differ by "
        f"at most {found['difference']:.1e} of the largest."
        for name, found in checks.items()
    ]


def _listed(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
