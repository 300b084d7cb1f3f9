"""The preset own, arguments of one's own functions, and that data sets are never mixed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.config.arguments import argument_text, argument_value, check_call
from ima_dist.config.errors import ConfigError
from ima_dist.config.own import check_chosen, chosen_text
from ima_dist.config.presets import PRESETS, data_name, has_papers_data, make_config, options_of, train_command
from ima_dist.config.schema import Config
from ima_dist.config.values import as_flags, as_option, differences, from_dict, to_dict, with_options
from ima_dist.dashboard.state import parse
from ima_dist.dashboard.views import tradeoff
from ima_dist.plans.jobfile import read_job, run_path
from ima_dist.plans.sweepfile import canonical, read_sweep
from ima_dist.recommend import adversarial_command
from ima_dist.results import paper
from ima_dist.results.candidates import rows_of_directory
from ima_dist.results.same_data import data_sets
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection
from tests.support.reports import read_csv, report_on
from tests.support.summaries import make_run
from tests.support.views import look

NEEDED: dict[str, Any] = {
    "name": "scans",
    "data.source": "mine:load",
    "model.factory": "mine:build",
    "eps_max": "8/255",
    "eval.noise": [0, "4/255", "8/255"],
}


def of_words(*words: str) -> Config:
    """The configuration of a command line."""
    parser = OneLineParser(prog="test", allow_abbrev=False)
    parser.add_argument("preset")
    add_options(parser)
    arguments = parser.parse_args(words)
    return make_config(arguments.preset, user_options(arguments))


# ---- the preset


def test_own_needs_what_it_cannot_know():
    config = make_config("own", NEEDED)
    assert (config.eps_max, config.eval.noise) == (8 / 255, (0.0, 4 / 255, 8 / 255))
    assert data_name(config) == "scans"
    assert paper.row_of(config) is None
    assert paper.rows_of(config) == {}
    with pytest.raises(ConfigError) as caught:
        make_config("own", {"name": "scans"})
    assert str(caught.value) == (
        "The preset own needs --data.dir DIR, with your data in one of the forms folder, list, npz, hdf5, "
        "dicom, nifti, or a function of your own (--data.source mine:load)."
    )
    with pytest.raises(ConfigError) as caught:
        make_config("own", {"data.source": "mine:load"})
    assert str(caught.value) == (
        "The preset own needs --name (such as mydata), --eps-max (such as 8/255), --eval.noise (such as 0,4/255,8/255)."
    )


@pytest.mark.parametrize("name", [*sorted(set(PRESETS) - {"pathmnist"}), "MNIST", "Fashion-MNIST", "own"])
def test_own_data_have_no_presets_name(name):
    with pytest.raises(ConfigError, match="is a preset's name"):
        make_config("own", {**NEEDED, "name": name})


def test_own_data_may_keep_the_name_of_a_preset_that_came_later():
    config = make_config("own", {**NEEDED, "name": "pathmnist"})
    assert make_config("own", options_of(config)) == config
    assert not has_papers_data(config)


def test_a_name_is_for_own_data_and_for_a_directory():
    with pytest.raises(ConfigError, match="--name goes with the preset own"):
        make_config("moons", {"name": "mine"})
    with pytest.raises(ConfigError, match="--name must consist of letters"):
        make_config("own", {**NEEDED, "name": "a/b"})
    assert run_path(Path("runs"), make_config("own", NEEDED)).name.startswith("scans-ima-linf-seed0-")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "ce", "norm": "l2"},
        {"data.args.size": 32, "seed": 3, "beta": 0.1},
        {"model.weights_strict": False, "data.download": True},
    ],
)
def test_the_command_makes_the_configuration_again(options):
    config = make_config("own", {**NEEDED, **options})
    assert make_config("own", options_of(config)) == config
    assert of_words(*train_command(config, "x").split()[3:-2]) == config
    assert from_dict(to_dict(config)) == config


def test_a_switch_that_is_on_can_be_switched_off():
    words = train_command(make_config("own", NEEDED), "x").split()[3:-2]
    for text, value in (("false", False), ("True", True)):
        assert of_words(*words, "--model.weights-strict", text).model.weights_strict is value
    with pytest.raises(ConfigError, match=r"--model\.weights-strict must be true or false, not 'no'"):
        of_words(*words, "--model.weights-strict", "no")


def test_own_data_under_a_preset_have_their_own_name():
    assert data_name(make_config("covid_ct")) == "covid_ct"
    assert data_name(make_config("covid_ct", {"data.source": "mine:load"})) == "mine:load"
    assert data_name(make_config("covid_ct", {"model.factory": "mine:build"})) == "covid_ct"


# ---- built-in sources


@pytest.mark.parametrize(
    ("files", "source"),
    [
        (["cat/a.png", "dog/b.JPG", "notes.txt"], "folder"),
        (["train/cat/a.tif"], "folder"),
        (["images.csv", "all/a.png"], "list"),
        (["chest.npz", ".hidden/a.png"], "npz"),
        (["chest.h5"], "hdf5"),
        (["ill/a.dcm", "ill/readme.txt"], "dicom"),
        (["labels.csv", "all/a.dcm"], "dicom"),
        (["train/ill/a.nii.gz"], "nifti"),
    ],
)
def test_the_form_of_data_is_guessed(tmp_path, files, source):
    for name in files:
        (tmp_path / "my photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my photos" / name).touch()
    config = make_config("own", {"data.dir": str(tmp_path / "my photos")})
    assert (config.data.source, config.name) == (source, "my-photos")
    assert config.eps_max == 8 / 255
    assert config.eval.noise == (0, 2 / 255, 4 / 255, 8 / 255)
    assert (config.epochs, config.batch_size) == (60, 128 if source in ("npz", "hdf5") else 32)
    assert config.model.factory == "ima_dist.models:default_network"
    if source in ("npz", "hdf5"):
        assert make_config("own", {"data.dir": str(tmp_path / "my photos" / files[0])}).name == "chest"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            ["a.txt"],
            "holds no file of a known kind: say what to read with --data.source folder|list|npz|hdf5|dicom|nifti",
        ),
        (["a.npz", "b.h5"], "holds a.npz, b.h5: say what to read"),
        (["prepared.json"], "is a prepared copy of a published data set, or damaged"),
        (None, "there is no such directory"),
    ],
)
def test_what_is_not_plain_is_not_guessed(tmp_path, files, sentence):
    for name in files or ():
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        make_config("own", {"data.dir": str(tmp_path if files else tmp_path / "none")})


def test_what_was_chosen_is_said(tmp_path):
    place = str(tmp_path / "a.npz")
    Path(place).touch()
    given = {"data.dir": place, "epochs": 3}
    assert chosen_text(make_config("own", given), given) == (
        "Chosen, since not given: --name a, --data.source npz, --model.factory ima_dist.models:default_network "
        "(ResNet-18 with instance norm for images, a small MLP for tables and for at most 8×8 pixels), --eps-max "
        "8/255, --eval.noise 0,2/255,4/255,8/255, --batch-size 128."
    )
    config = make_config("own", {**given, "data.window": (-1350.0, 150.0)})
    assert config.eps_max == pytest.approx(1500 * 8 / 255)
    assert (config.model.mean, config.model.std) == ((-600,), (750,))
    assert chosen_text(config, given).endswith(", in units of the window -1350 to 150.")
    assert of_words(*train_command(config, "x").split()[3:-2]) == config
    assert chosen_text(make_config("own", NEEDED), {*NEEDED, "epochs", "batch_size"}) == ""


@pytest.mark.parametrize("box", [None, [0.0, 1.0]])
def test_noise_levels_are_chosen_for_images_only(tmp_path, box):
    place = str(tmp_path / "a.npz")
    Path(place).touch()
    given = {"data.dir": place}
    config = make_config("own", given)
    check_chosen(config, given, {"low": 0.0, "high": 1.0, "box": box})
    table = {"low": -2.8, "high": 9.7, "box": None}
    for some in (given, {**given, "eps_max": 0.5}):
        with pytest.raises(
            ConfigError, match=r"between -2\.8 and 9\.7, without fixed limits.*give --eps-max and --eval"
        ):
            check_chosen(config, some, table)
    check_chosen(config, {**given, "eps_max": 0.5, "eval.noise": (0.0, 0.5)}, table)
    check_chosen(make_config("own", NEEDED), NEEDED, table)


def test_options_of_built_in_sources_are_theirs(tmp_path):
    for option, value in (("size", 8), ("channels", 1), ("resize", "pad"), ("window", (0.0, 1.0))):
        for preset, rest in (("moons", {}), ("own", NEEDED)):
            with pytest.raises(ConfigError, match=rf"--data\.{option} goes with --data.source folder\|list"):
                make_config(preset, {**rest, f"data.{option}": value})
    own = {**NEEDED, "data.source": "folder"}
    plain = make_config("own", own)
    assert make_config("own", {**own, "data.size": 8}).fingerprint() != plain.fingerprint()
    for wrong in ({"data.channels": 2}, {"data.window": (3.0, 1.0)}, {"data.window": (3.0,)}, {"data.size": 0}):
        with pytest.raises(ConfigError, match=as_option(next(iter(wrong))) + " must be"):
            make_config("own", {**own, **wrong})
    with pytest.raises(ConfigError, match=r"--data.source must be one of folder, .*did you mean folder"):
        make_config("own", {"data.dir": str(tmp_path), "data.source": "foldr"})
    with pytest.raises(ConfigError, match=r"--norm l2|needs --eps-max"):
        make_config("own", {"data.source": "folder", "name": "a", "norm": "l2"})


def test_fingerprints_of_own_functions_have_not_changed():
    assert make_config("own", NEEDED).fingerprint() == "31a363cb2be3acae"


# ---- arguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32", 32), ("0.5", 0.5), ("1e-4", 1e-4), ("true", True), ("null", None), ("[1, 2.5]", [1, 2.5]),
        ("text", "text"), ('"32"', "32"), ("a,b", "a,b"), ("NaN", "NaN"), ("8/255", "8/255"), ("", ""),
        ("-1e-5", -1e-5), ("-x", "-x"),
    ],
)  # fmt: skip
def test_the_value_of_an_argument_survives_a_command_line_and_a_file(text, value):
    assert argument_value(text) == value
    assert argument_value(argument_text(value)) == value
    config = of_words("moons", f"--data.args.key={text}")
    assert config.data.args == {"key": value}
    if text != "-x":
        assert of_words("moons", "--data.args.key", text) == config
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config
    assert of_words("moons", *as_flags(options_of(config))) == config


def test_arguments_are_part_of_what_ran():
    plain, given = make_config("moons"), make_config("moons", {"model.args.width": 8})
    assert plain.fingerprint() != given.fingerprint()
    assert plain.fingerprint() == make_config("moons", {"model.args": {}}).fingerprint()
    assert differences(plain, given) == ["model.args.width"]
    assert hash(given) != hash(plain)
    assert canonical(given) == given
    for wrong in ({"a-b": 1}, {"a": object()}, {"a": {"b": 1}}, {"a": float("inf")}):
        with pytest.raises(ConfigError, match="argument"):
            with_options(plain, {"data.args": wrong})


def test_an_argument_that_is_no_option_is_refused():
    with pytest.raises(ConfigError, match=r"Unknown option '--optimizer\.args\.x'"):
        of_words("moons", "--optimizer.args.x", "3")
    with pytest.raises(ConfigError, match="expected one argument"):
        of_words("moons", "--data.args.x")


def test_a_function_is_called_with_what_it_takes():
    def load(config, seed, size=3, *, crop, **more):
        return None

    def build(classes, shape):
        return None

    check_call(load, "mine:load", "data.args", 2, {"crop": 1, "other": 2})
    with pytest.raises(ConfigError, match=r"mine:load needs the argument crop: give --data.args.crop\."):
        check_call(load, "mine:load", "data.args", 2, {})
    with pytest.raises(ConfigError, match="mine:build has no argument width; it takes none beside its first 2"):
        check_call(build, "mine:build", "model.args", 2, {"width": 3})
    with pytest.raises(ConfigError, match="has no argument shape"):
        check_call(build, "mine:build", "model.args", 2, {"shape": 3})


def test_sweeps_and_jobs_give_arguments(tmp_path):
    shared = {"title": "widths", "preset": "own", "options": {**NEEDED, "data.args": {"size": 8}}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**shared, "sweep": {"eps_max": ["4/255", "8/255"], "model.args.width": [16, 32]}}))
    points = read_sweep(file).points
    assert [(p.config.model.args["width"], round(p.config.eps_max * 255)) for p in points] == [
        (16, 4), (32, 4), (16, 8), (32, 8),
    ]  # fmt: skip
    assert len({p.config.fingerprint() for p in points}) == 4
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**shared, "rows": {"a": {"data.args.crop": "1e-1"}, "b": None}}))
    rows = read_job(job).rows
    assert rows["a"].data.args == {"size": 8, "crop": 0.1}
    assert rows["b"].data.args == {"size": 8}


# ---- fractions


def test_a_fraction_is_a_number_wherever_a_noise_level_is_typed(tmp_path):
    words = ("--eps-max", "8/255", "--delta-eps", "1/255", "--eval.noise", "0,8/255", "--eval.val-noise", "4/255")
    config = of_words("cifar10", *words)
    assert (config.eps_max, config.delta_eps) == (8 / 255, 1 / 255)
    assert (config.eval.noise, config.eval.val_noise) == ((0.0, 8 / 255), 4 / 255)
    file = tmp_path / "sweep.yaml"
    space = {"eps_max": {"uniform": ["2/255", "8/255"]}}
    file.write_text(yaml.safe_dump({"title": "a", "preset": "moons", "sweep": space, "search": "random", "samples": 3}))
    assert all(2 / 255 <= p.config.eps_max <= 8 / 255 for p in read_sweep(file).points)
    for wrong in ("8/0", "a/255", "8/", "8//255", "nan"):
        with pytest.raises(ConfigError, match="--eps-max must be"):
            make_config("moons", {"eps_max": wrong})
    with pytest.raises(ConfigError, match=r"--eval\.noise must be a number, not ''"):
        of_words("cifar10", "--eval.noise", "0,,1")


def test_job_and_sweep_files_name_their_commands(tmp_path):
    job, sweep = tmp_path / "job.yaml", tmp_path / "sweep.yaml"
    job.write_text(yaml.safe_dump({"title": "a", "preset": "moons", "rows": {"a": {}}}))
    sweep.write_text(yaml.safe_dump({"title": "a", "preset": "moons", "sweep": {"beta": [0.1]}}))
    with pytest.raises(ConfigError, match=r"is a sweep file: give it to python -m ima_dist\.sweep"):
        read_job(sweep)
    with pytest.raises(ConfigError, match=r"is a job file: give it to python -m ima_dist\.job"):
        read_sweep(job)


# ---- data sets are not mixed


def with_digest(run: RunDir, digest: str) -> Run:
    write_json(run.summary_path, {**run.summary(), "data_digest": digest})
    return Run(run)


CURVE = {0.0: 0.9, 0.1: 0.5}
LEVELS = {"eval__noise": [0.0, 0.1], "eps_max": 0.1}
FUNCTIONS = {"data__source": "mine:load", "model__factory": "mine:build"}


def test_other_data_of_the_same_name_are_another_set(tmp_path, capsys):
    own = {**LEVELS, **FUNCTIONS, "name": "scans"}
    places = [tmp_path / name for name in "abc"]
    runs = [
        with_digest(make_run(places[0], "own", CURVE, **own), "1" * 16),
        with_digest(make_run(places[1], "own", CURVE, **own, method="ce"), "1" * 16),
        with_digest(make_run(places[2], "own", CURVE, **own, seed=1), "2" * 16),
    ]
    assert data_sets(runs) == ["scans"] * 3
    assert len(rows_of_directory(tmp_path)[0]) == 2
    runs.append(with_digest(make_run(tmp_path / "d", "own", CURVE, **own, method="adv"), "3" * 16))
    assert data_sets(runs) == [
        "scans (data 111111)", "scans (data 111111)", "scans (data 222222)", "scans (data 333333)",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"scans \(data 111111\) under linf and scans \(data 222222\)"):
        rows_of_directory(tmp_path)
    kinds, *_ = tradeoff.controls(look(Collection(tmp_path)), parse(""))
    assert sorted(kinds.options.values()) == [f"scans (data {d * 6}), L∞" for d in "123"]


def test_own_data_are_beside_no_paper(tmp_path):
    make_run(tmp_path / "a", "covid_ct", CURVE, **LEVELS, **FUNCTIONS, epochs=3)
    make_run(tmp_path / "b", "covid_ct", CURVE, epochs=3)
    make_run(tmp_path / "c", "own", CURVE, **LEVELS, **FUNCTIONS, name="scans")
    page = report_on(tmp_path / "out", tmp_path)
    assert {"Own data: mine:load, L∞ noise", "Own data: scans, L∞ noise"} <= set(page.texts["h2"])
    own = [row for row in page.rows if row and row[0].startswith("ima seed 0") and "epochs 3" in row[0]]
    assert sorted("(paper: 100)" in row[0] for row in own) == [False, True]
    assert sorted("reduced" in row[0] for row in own) == [False, True]
    rows = read_csv(tmp_path / "out" / "curves.csv")
    assert {row["run"]: row["data"] for row in rows} == {"a": "mine:load", "b": "covid_ct", "c": "scans"}


# ---- the command that recommend prints


def test_the_recommended_command_keeps_the_protocol():
    options = {
        **NEEDED, "data.args.size": 8, "attack.steps": 7, "attack.bisections": 3, "eval.steps": 5, "eval.samples": 50,
        "eval.attacks": ("worst",), "beta": 0.1, "dtype": "float64", "epochs": 4, "seed": 2,
    }  # fmt: skip
    command = adversarial_command(make_config("own", options), 0.02)
    config = of_words(*command.split()[3:])
    same = make_config("own", {**options, "method": "adv", "eps_max": 0.02, "beta": 0.5, "attack.bisections": 10})
    assert config == same
