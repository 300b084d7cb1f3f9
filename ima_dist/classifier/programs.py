"""A network as a program for those without its code: by torch.export, and as ONNX; both compared with the network."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks import pgd
from ima_dist.classifier.exported import ONNX, PROGRAM
from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import Config
from ima_dist.data.choosing import to_attack
from ima_dist.data.pipeline import Streamed
from ima_dist.data.types import DataSet
from ima_dist.training.network import DTYPES

# Largest difference of two logits that count as equal, as a share of the largest logit.
TOLERANCE = 1e-4
_SAMPLES, _STEPS = 32, 10
Answer = Callable[[Tensor], Tensor]


def need_onnx() -> None:
    """Raise ConfigError unless ONNX's packages are installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs the package {missing[0]}: pip install 'ima_dist[export]', or leave it out with --format "
            "safetensors,torch."
        )


def samples_to_compare(network: nn.Module, data: DataSet, config: Config) -> Tensor:
    """Test samples (2·S, ...) as the network sees them: first clean, then attacked with PGD at ε_max."""
    test = Streamed(data.test, "cpu", DTYPES[config.dtype], data.box)
    x, y = test.batch(to_attack(data.test, _SAMPLES, "stratified"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        attacked = pgd(network, x, y, config.eps_max, norm=config.norm, steps=_STEPS, box=data.box)
    return torch.cat([x, attacked])


def write_program(network: nn.Module, x: Tensor, directory: Path) -> dict[str, Any]:
    """model.pt2, for samples of the network's precision. x (N, ...), N at least 2: samples to compare it on.

    Returns what ``compared`` finds. Raises ConfigError if the network cannot be exported, or the program differs.
    """
    program = _traced(network, x)
    with _quiet():
        torch.export.save(program, directory / PROGRAM)
        answer = torch.export.load(directory / PROGRAM).module()
    return compared(PROGRAM, network, answer, x)


def write_onnx(network: nn.Module, x: Tensor, directory: Path) -> dict[str, Any]:
    """model.onnx, for float32 samples; otherwise as ``write_program``."""
    # onnxruntime computes convolutions in float32 only.
    single = copy.deepcopy(network).float()
    program = _traced(single, x.float())
    try:
        with _quiet():
            torch.onnx.export(
                program,
                f=str(directory / ONNX),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["x"],
                output_names=["logits"],
            )
    except Exception as error:
        raise ConfigError(
            f"The network cannot be written as ONNX ({first_line(error)}): leave it out with --format "
            "safetensors,torch."
        ) from error
    return compared(ONNX, network, onnx_answers(directory / ONNX), x)


def onnx_answers(file: Path) -> Answer:
    """The logits (N, classes) of an ONNX file for samples (N, ...), by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def answer(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": x.float().numpy()})[0])

    return answer


def compared(name: str, network: nn.Module, answer: Answer, x: Tensor) -> dict[str, Any]:
    """{"samples", "difference", "labels"}: half the number of x, the largest difference of two logits as a share of the
    largest logit, and how many labels differ.

    Raises ConfigError if the difference exceeds TOLERANCE, or a label differs where the two largest logits do not lie
    within twice of it.
    """
    with torch.no_grad():
        # In batches of two sizes, one of them 1, as the size must not matter.
        expected = torch.cat([network(x[:1]), network(x[1:])]).double()
        found = torch.cat([answer(x[:1]), answer(x[1:])]).double()
    largest = max(float(expected.abs().max()), 1e-30)
    difference = float((found - expected).abs().max()) / largest
    top = expected.topk(2).values
    clear = (top[:, 0] - top[:, 1]) > 2 * TOLERANCE * largest
    other = found.argmax(1) != expected.argmax(1)
    if not difference <= TOLERANCE or bool((other & clear).any()):
        raise ConfigError(
            f"{name} does not answer as the network does (logits differ by {difference:.1e} of the largest): choose "
            "other formats with --format."
        )
    return {"samples": len(x) // 2, "difference": difference, "labels": int(other.sum())}


def _traced(network: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    try:
        with _quiet():
            # A batch of one would fix the batch size. Strict, which torch 2.7 is by default, refuses the ninth network
            # of a process: all of them count as one function that was compiled again.
            batch = torch.export.Dim("batch")
            return torch.export.export(network, (x[:2],), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:
        raise ConfigError(
            f"torch.export cannot export the network ({first_line(error)}): write only its weights with --format "
            "safetensors."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters print and log of their own working."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
