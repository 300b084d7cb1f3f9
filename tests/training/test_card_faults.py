"""The pretend card against planted faults: lines of the product as they are often written by mistake."""

from __future__ import annotations

import importlib
import types
from collections import Counter
from pathlib import Path

import pytest
import torch

import ima_dist
from ima_dist.attacks import bpgd
from ima_dist.config.presets import make_config
from ima_dist.rundir.directory import RunDir
from ima_dist.worker.tasks import train_task
from tests.support.fakecard import CUDA0, DeviceMix, fake_card
from tests.support.small_images import cnn

PACKAGE = Path(ima_dist.__file__).parent


def plant(monkeypatch: pytest.MonkeyPatch, right: str, wrong: str) -> None:
    """Exchange a line of ima_dist, given by the only occurrence of ``right``, in the functions already imported."""
    holders = [file for file in sorted(PACKAGE.rglob("*.py")) if right in file.read_text(encoding="utf-8")]
    assert len(holders) == 1, f"{right!r} has moved or changed: plant this fault elsewhere"
    source = holders[0].read_text(encoding="utf-8")
    assert source.count(right) == 1
    relative = holders[0].relative_to(PACKAGE.parent).with_suffix("")
    module = importlib.import_module(".".join(relative.parts))
    before, after = (
        functions_of(compile(text, str(holders[0]), "exec")) for text in (source, source.replace(right, wrong))
    )
    (changed,) = [name for name in before if before[name] != after[name]]
    function = module
    for part in changed.split("."):
        function = getattr(function, part)
    monkeypatch.setattr(function, "__code__", after[changed])


def functions_of(code: types.CodeType, prefix: str = "") -> dict[str, types.CodeType]:
    """The functions and methods of a compiled module by their names in it."""
    found = {}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            is_class = "__qualname__" in constant.co_names and "__module__" in constant.co_names
            name = prefix + constant.co_name
            found |= functions_of(constant, name + ".") if is_class else {name: constant}
    return found


def train(tmp_path: Path) -> None:
    short = {"attack.steps": 4, "attack.bisections": 2, "eval.steps": 2, "eval.samples": 10, "delta_eps": 0.1}
    evaluation = {"eval.noise": (0.0, 0.1), "eval.attacks": ("pgd100", "worst")}
    config = make_config("moons", {"data.subset": 100, "epochs": 1, "batch_size": 50, **short, **evaluation})
    run = RunDir.create(config, tmp_path / "run")
    train_task(config, run, CUDA0, lambda: False)
    # An attack that fails does not end the evaluation.
    if failed := run.summary()["failed_attacks"]:
        raise RuntimeError(str(failed))


FAULTS = [
    ("low, width = torch.zeros(len(y), dtype=inside.dtype, device=inside.device)",
     "low, width = torch.zeros(len(y), dtype=inside.dtype)"),
    ("self._flags = torch.zeros(held + 1, dtype=torch.uint8, device=self.device)",
     "self._flags = torch.zeros(held + 1, dtype=torch.uint8)"),
    ("torch.zeros(len(panel) + 1, dtype=torch.int64, device=device)", "torch.zeros(len(panel) + 1, dtype=torch.int64)"),
    ("(offset + 1, offset + count + 1, device=keys.device)", "(offset + 1, offset + count + 1)"),
    ("self.y = split.y.to(device)", "self.y = split.y"),
    ("return indices.pin_memory().to(self.y.device, non_blocking=True)", "return indices"),
    ("predicted.cpu().numpy()", "predicted.numpy()"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), FAULTS)
def test_a_tensor_left_on_the_cpu_is_refused(right, wrong, tmp_path, monkeypatch):
    plant(monkeypatch, right, wrong)
    with fake_card(), pytest.raises((DeviceMix, TypeError, RuntimeError), match=r"same device|device type"):
        train(tmp_path)


def waits_of_bpgd(steps: int) -> Counter[str]:
    """Waits by line of an attack that breaks no sample."""
    torch.manual_seed(0)
    network, x = cnn(4, (1, 10, 10)), torch.rand(8, 1, 10, 10)
    y = network(x).argmax(1)
    with fake_card() as card:
        network, x, y = network.to(CUDA0), x.to(CUDA0), y.to(CUDA0)
        card.reset()
        found = bpgd(network, x, y, 1e-6, norm="linf", steps=steps, start=torch.zeros_like(x), box=(0.0, 1.0))
        waits = Counter({line: count for (_, line), count in card.waits.items()})
        assert not found.crossed.any()
    return waits


def test_one_more_wait_in_a_step_is_counted_at_its_line(monkeypatch):
    usual = waits_of_bpgd(8) - waits_of_bpgd(4)
    assert not usual
    step = "now, taken = balls.step(now, common.finite(gradient), size), taken + 1"
    plant(monkeypatch, step, "assert gradient.isfinite().all(); " + step)
    more = waits_of_bpgd(8) - waits_of_bpgd(4)
    assert sum(more.values()) == 4
    assert all(line.startswith("ima_dist/attacks/pgd.py:") for line in more)


def test_what_cuda_accepts_is_not_refused():
    cpu = torch.arange(6.0)
    with fake_card() as card:
        x = cpu.to("cuda")
        assert (x * torch.tensor(2.0)).tolist() == (cpu * 2).tolist()
        assert x[torch.tensor([1, 3])].tolist() == [1, 3]
        assert ("index from the host", "?") in card.waits
        assert torch.zeros_like(cpu, device="cuda").device == CUDA0
        for refused in (
            lambda: x + cpu,
            lambda: cpu[x.long()],
            lambda: torch.cat([x, cpu]),
            lambda: cpu.copy_(x).add_(x),
        ):
            with pytest.raises(DeviceMix):
                refused()
