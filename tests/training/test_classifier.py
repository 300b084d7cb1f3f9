"""The Python face: load, the Classifier, prediction from files, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ima_dist
from ima_dist import predict
from ima_dist.classifier.export import write_export
from ima_dist.config.errors import ConfigError, DataWarning
from ima_dist.rundir.run import Run
from tests.saved import copied_to
from tests.support import notebooks, small_images
from tests.support.commands import ROOT
from tests.support.exports import seal, small_run, write_pictures


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """``runs/scans``, ``photos``, and ``export`` with the weights of that run only."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("classifier")
    run = Run.open(small_run(root / "runs" / "scans"))
    write_pictures(root / "photos")
    data = small_images.two_classes(None, 0)
    write_export(run, 2, ima_dist.load(run.dir.path).network, data, ("safetensors",), root / "export")
    return root


@pytest.fixture
def changed(places, tmp_path):
    """A copy of the export, to be damaged."""
    return shutil.copytree(places / "export", tmp_path / "export")


def test_bytes_and_floats_give_the_same_logits_as_the_run(places):
    classifier, exported = ima_dist.load(places / "runs" / "scans"), ima_dist.load(places / "export")
    data = small_images.two_classes(None, 0)
    logits = classifier(data.test.x)
    assert not classifier.training
    assert classifier.class_names == ("healthy", "ill")
    assert torch.equal(logits, classifier(data.test.x / 255))
    assert torch.equal(logits, exported(data.test.x))
    summary = Run.open(places / "runs" / "scans").summary
    labels, probabilities = classifier.predict(data.test.x)
    assert (labels == data.test.y.numpy()).mean() == summary["clean_accuracy"]
    assert probabilities == pytest.approx(logits.softmax(1).detach().numpy(), abs=1e-6)
    assert labels.tolist() == classifier.predict(data.test.x.numpy() / np.float32(255), batch_size=3)[0].tolist()
    assert classifier.card["accuracies"] == exported.card["accuracies"]
    x = torch.rand(2, 1, 10, 10, requires_grad=True)
    classifier(x).sum().backward()
    assert float(x.grad.abs().sum()) > 0


def test_files_are_classified(places, tmp_path, capsys):
    pixels = write_pictures(tmp_path / "photos")
    for source in ("runs/scans", "export"):
        to = tmp_path / f"{source.replace('/', '-')}.csv"
        words = [str(places / source), str(tmp_path / "photos"), "--to", str(to), "--device", "cpu"]
        with pytest.warns(DataWarning, match=r"prepared by tests\.support\.small_images:two_classes; .* grey"):
            assert predict.main(words) == 0
        rows = [*csv.DictReader(to.open(encoding="utf-8"))]
        assert [row["file"] for row in rows] == ["0.png", "1.png", "more/2.png"]
        classifier = ima_dist.load(places / source)
        labels, probabilities = classifier.predict(pixels)
        capsys.readouterr()
        assert [row["class"] for row in rows] == [classifier.class_names[label] for label in labels]
        assert [float(row["p(ill)"]) for row in rows] == pytest.approx(probabilities[:, 1].tolist(), rel=1e-4)
    assert predict.main([str(places / "export"), str(tmp_path / "photos"), "--to", str(to)]) == 2
    assert "exists: give another --to" in capsys.readouterr().err
    words[words.index("--to") + 1] = str(to / "below.csv")
    assert predict.main(words) == 2
    assert "cannot be written (Not a directory): give another --to" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::ima_dist.config.errors.DataWarning")
def test_folders_and_files_that_cannot_be_read(places, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    for name, message in (("empty", "holds no image"), ("broken", "a.png cannot be read"), ("none", "no folder")):
        message = "is not a folder" if name == "none" else message
        words = [str(places / "export"), str(tmp_path / name), "--to", str(tmp_path / "out.csv"), "--device", "cpu"]
        assert predict.main(words) == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("error: ")
        assert message in error
        assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.rand(2, 1, 9, 10), r"takes samples \(N, 1, 10, 10\), not \(2, 1, 9, 10\)"),
        (torch.rand(1, 10, 10), r"takes samples \(N, 1, 10, 10\)"),
        (torch.zeros(2, 1, 10, 10, dtype=torch.int64), "uint8 or floating point, not int64"),
        (torch.rand(2, 1, 10, 10) * 255, "divide pixels by 255"),
        (torch.full((2, 1, 10, 10), torch.nan), "NaN"),
        ("nowhere", "There is no nowhere"),
    ],
)
def test_samples_that_do_not_fit(places, samples, message):
    with pytest.raises(ConfigError, match=message):
        ima_dist.load(places / "export").predict(samples)


def _truncate(place):
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    return "damaged or another file"


def _truncate_and_seal(place):
    _truncate(place)
    seal(place)
    return "no whole safetensors file"


def _pickle(place):
    torch.save({"a": torch.zeros(1)}, place / "model.safetensors")
    return "is a pickled file"


def _tensors(place, change):
    file = place / "model.safetensors"
    save_file(change(load_file(file)), file)
    seal(place)


def _half(place):
    _tensors(place, lambda found: {k: v.half() if v.is_floating_point() else v for k, v in found.items()})
    return "is float16, where float32 is needed"


def _shape(place):
    _tensors(place, lambda found: {k: v[:1].clone() if v.dim() else v for k, v in found.items()})
    return "where .* is needed"


def _fewer(place):
    _tensors(place, lambda found: {k: v for k, v in found.items() if not k.startswith("5.")})
    return "of another network: RuntimeError"


def _architecture(place):
    config = json.loads((place / "config.json").read_text())
    config["training"]["model"]["factory"] = "tests.support.small_images:cnn"
    (place / "config.json").write_text(json.dumps(config))
    return r"of another network: it has no 1\."


def _answers(place):
    config = json.loads((place / "config.json").read_text())
    config["answers"][0][0] += 1.0
    (place / "config.json").write_text(json.dumps(config))
    return "its code has changed"


def _no_module(place):
    config = json.loads((place / "config.json").read_text())
    config["training"]["model"]["factory"] = "nowhere_to_be_found:build"
    (place / "config.json").write_text(json.dumps(config))
    (place / "code").mkdir(exist_ok=True)
    return "there is no module 'nowhere_to_be_found'.*PYTHONPATH="


def _card(place):
    (place / "card.json").write_text("{}")
    return "card.json is damaged"


def _other(place):
    (place / "config.json").write_text('{"model_type": "bert"}')
    return "not of an export of ima_dist"


def _without(place):
    config = json.loads((place / "config.json").read_text())
    del config["inputs"]
    (place / "config.json").write_text(json.dumps(config))
    return "config.json"


_DAMAGES = (_truncate, _truncate_and_seal, _pickle, _half, _shape, _fewer, _architecture, _answers, _no_module, _card,
            _other, _without)  # fmt: skip


@pytest.mark.parametrize("damage", _DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_export_is_refused_in_one_sentence(changed, damage, capsys):
    message = damage(changed)
    with pytest.raises(ConfigError, match=message) as caught:
        ima_dist.load(changed)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_what_is_not_there(places, tmp_path):
    run = places / "runs" / "scans"
    for arguments, message in (
        ((run, 9), "has no epoch 9: it has 1 to 2"),
        ((run, 1, "best-robust"), "not both"),
        ((places / "export", 1), "is an export"),
        ((tmp_path,), "is neither"),
        ((tmp_path / "none",), "does not exist"),
        ((run / "config.yaml",), "is not a directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            ima_dist.load(*arguments)


def test_weights_of_a_run_are_checked(places, tmp_path):
    run = shutil.copytree(places / "runs" / "scans", tmp_path / "run")
    weights = run / "checkpoints" / "epoch=0001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    ima_dist.load(run)
    with pytest.raises(ConfigError, match="is damaged"):
        ima_dist.load(run, epoch=1)


def test_a_network_whose_code_has_changed_is_refused(places, monkeypatch):
    def other(num_classes, input_shape):
        network = small_images._network(num_classes, torch.nn.BatchNorm2d(4))
        network[2] = torch.nn.Tanh()
        return network

    def no_data(*_):
        raise AssertionError("a run says what its network takes")

    monkeypatch.setattr(small_images, "two_classes", no_data)
    ima_dist.load(places / "runs" / "scans")
    monkeypatch.setattr(small_images, "batch_norm_cnn", other)
    for name in ("runs/scans", "export"):
        with pytest.raises(ConfigError, match="its code has changed"):
            ima_dist.load(places / name)


@pytest.mark.parametrize("name", ["finished", "epochs"])
def test_runs_of_the_first_version_are_loaded(tmp_path, name):
    run = copied_to(tmp_path) / name
    classifier = ima_dist.load(run)
    assert classifier.card["warnings"] is not None
    labels, _ = classifier.predict(torch.zeros(2, *classifier.shape))
    assert labels.shape == (2,)


def test_the_face_is_light_and_needs_no_ray(places, tmp_path):
    """Nor does a training import what is slow to import and of no use to it."""
    code = (
        "import sys; import ima_dist; assert not {'torch', 'ray', 'numpy'} & sys.modules.keys(); "
        "sys.modules['ray'] = None; c = ima_dist.load(sys.argv[1]); "
        "assert 'load' in dir(ima_dist); ima_dist.IncreasingMargin; ima_dist.measure"
        "; "
        "import ima_dist.predict, ima_dist.train; assert callable(ima_dist.train.main); print(c.class_names)"
        "; options = {'data.subset': 40, 'eval.noise': [0.1], 'eval.steps': 1}"
        "; run = ima_dist.fit('moons', out=sys.argv[2], epochs=1, **options); assert run.status == 'finished'"
        "; assert not {'torchvision', 'sklearn', 'scipy'} & sys.modules.keys()"
    )
    words = [str(places / "export"), str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "healthy" in done.stdout


def test_the_examples_of_the_page_run(places, monkeypatch, capsys):
    monkeypatch.chdir(places)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 5
    with pytest.warns(DataWarning, match="prepared by"), notebooks.as_main() as names:
        notebooks.run_cell("\n".join(examples), "<docs/python.md>", names)
    assert "pgd100 0.0" in capsys.readouterr().out
