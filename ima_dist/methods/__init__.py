"""Training methods behind one interface (``base.Method``)."""

from ima_dist.config.schema import Config
from ima_dist.methods.adv import Adversarial, RandomNoise
from ima_dist.methods.base import Attacked, Batch, Method
from ima_dist.methods.ce import CrossEntropy
from ima_dist.methods.ddn import DDN
from ima_dist.methods.fat import Friendly
from ima_dist.methods.iaat import IAAT
from ima_dist.methods.ima import IMA
from ima_dist.methods.mma import MMA
from ima_dist.methods.nfgsm import NFGSM
from ima_dist.methods.trades import Trades

METHODS: dict[str, type[Method]] = {
    "ima": IMA,
    "ce": CrossEntropy,
    "adv": Adversarial,
    "rand": RandomNoise,
    "trades": Trades,
    "mma": MMA,
    "ddn": DDN,
    "iaat": IAAT,
    "fat": Friendly,
    "nfgsm": NFGSM,
}


def make_method(config: Config, box: tuple[float, float] | None) -> Method:
    """The configured method for data whose inputs lie in ``box``."""
    return METHODS[config.method](config, box)


__all__ = ["METHODS", "Attacked", "Batch", "Method", "make_method"]
