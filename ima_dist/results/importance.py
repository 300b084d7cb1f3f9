"""Which option of a sweep matters for its results: PED-ANOVA (Watanabe et al., IJCAI 2023), as Optuna has it."""

import warnings
from collections.abc import Sequence
from typing import Any

#: With fewer results nothing is said.
FEWEST = 8


def importance(values: Sequence[dict[str, Any]], scores: Sequence[float]) -> dict[str, float]:
    """Option -> its share of what all options together tell of the score, most important first.

    values: of each result the options that all results have. {} for fewer than ``FEWEST`` results, equal scores, or
    options that do not vary.
    """
    names = [name for name in (values[0] if values else {}) if all(name in own for own in values)]
    names = [name for name in names if len({repr(own[name]) for own in values}) > 1]
    if len(values) < FEWEST or not names or len(set(scores)) < 2:
        return {}
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    distributions: dict[str, BaseDistribution] = {}
    for name in names:
        column = [own[name] for own in values]
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in column):
            distributions[name] = FloatDistribution(float(min(column)), float(max(column)))
        else:
            distributions[name] = CategoricalDistribution(sorted({str(x) for x in column}))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for own, score in zip(values, scores, strict=True):
        numeric = {n: isinstance(d, FloatDistribution) for n, d in distributions.items()}
        params = {n: float(own[n]) if numeric[n] else str(own[n]) for n in names}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls this evaluator experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}
