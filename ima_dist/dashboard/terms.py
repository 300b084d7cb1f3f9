"""What the words of the dashboard mean, for the head of every page."""

from typing import Any

from dash import html

from ima_dist.config.attacks import ATTACK_TABLE, SMOOTHING
from ima_dist.config.schema import METHODS

_TITLE = "Increasing-Margin Adversarial (IMA) training to improve adversarial robustness of neural networks"
_ARXIV, _DOI = "2005.09147", "10.1016/j.cmpb.2023.107687"

_WORDS = {
    "the paper": f"Ma and Liang; tables, figures and appendices are numbered as in arXiv:{_ARXIV}",
    "noise level ε": "how far an attack may move a sample, in the norm of the run: its strength",
    "clean accuracy": "share of the test samples that are classified correctly without noise",
    "robust accuracy": "the same share under an attack with a given noise level ε",
    "95 % interval": "where the value would lie for all samples of the kind, judged from those that were tested",
    "ε_max": "the largest noise level of the training; for ima the largest margin",
    "Δε": "the step by which ima lets a margin grow in an epoch",
    "β": "the weight of noisy samples in the loss of ima; methods without it have none",
    "margin": "estimated distance of a training sample to the decision boundary",
    "recall, precision": "share of a class that is recognised; share of what is taken for the class that belongs to it",
    "balanced accuracy": "mean recall of all classes",
    "AUC": "how often a sample of the class has a higher probability of it than another sample",
    "ECE": "expected calibration error: how far confidence lies from accuracy, on average",
    "McNemar's test": "whether two networks that saw the same samples differ, judged by those that only one gets right",
    "L∞, L2": "norms: the largest change of any one value of a sample; the length of all changes together",
    "beyond chance": "a difference that the number of test samples, and of seeds, does not explain",
}
_METHODS = {
    "ima": "the paper's: noise as large as the sample's own margin, which grows",
    "ce": "standard training with cross-entropy, without noise",
    "adv": "adversarial training with noise of one size (Madry et al. 2018)",
    "rand": "as adv, with random noise",
    "trades": "accuracy weighed against robustness (Zhang et al. 2019)",
    "mma": "training at the nearest point of the boundary (Ding et al. 2020)",
    "ddn": "the shortest perturbation, cut to ε_max (Rony et al. 2019; L2)",
    "iaat": "a noise level of its own for each sample (Balaji et al. 2019)",
    "fat": "PGD stopped soon after it has crossed the boundary (Zhang et al. 2020)",
    "nfgsm": "a single step from a random start (de Jorge et al. 2022; L∞)",
}
WORST = "worst"
_ATTACKS = {
    "pgd100": "PGD, 100 steps unless the run says otherwise, with each of two losses: cross-entropy and margin loss; "
    "“both” means that a sample must withstand both",
    WORST: "the strongest of several attacks per sample",
    SMOOTHING: "not an attack: certified radii of the smoothed classifier",
}


def about_attack(name: str) -> str:
    """A line of help: "worst: the strongest of several attacks per sample"."""
    return f"{name}: {_ATTACKS.get(name) or ATTACK_TABLE[name].about}"


def attack_label(name: str) -> str:
    """An attack where it is chosen."""
    return f"{name} (strongest of several)" if name == WORST else name


def named(attack: str) -> str:
    """An attack in a sentence, in which its name may be taken for an ordinary word."""
    return f"“{attack}”" if attack == WORST else attack


def under(attack: str) -> str:
    """Under which attack something was measured, in a sentence."""
    return f"under the attack {named(attack)}" if attack == WORST else f"under {attack}"


def head() -> html.Div:
    """Which paper is meant, and the words, folded."""
    attacks = {name: _ATTACKS.get(name, ATTACK_TABLE[name].about) for name in ATTACK_TABLE}
    groups = (("", _WORDS), ("Methods", {name: _METHODS[name] for name in METHODS}), ("Attacks", attacks | _ATTACKS))
    lists = [part for title, words in groups for part in _list(title, words)]
    paper: list[Any] = [
        "“The paper”: ",
        html.Cite(_TITLE),
        " (",
        html.A(f"arXiv:{_ARXIV}", href=f"https://arxiv.org/abs/{_ARXIV}"),
        "; ",
        html.A(f"doi:{_DOI}", href=f"https://doi.org/{_DOI}"),
        ")",
    ]
    words = html.Details([html.Summary("What the words mean"), *lists], id="words")
    return html.Div([words, html.Span(paper)], className="terms")


def _list(title: str, words: dict[str, str]) -> list[Any]:
    pairs = [part for word, meaning in words.items() for part in (html.Dt(word), html.Dd(meaning))]
    return [*([html.H2(title)] if title else []), html.Dl(pairs)]
