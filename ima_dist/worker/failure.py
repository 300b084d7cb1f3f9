"""How a worker that fails ends the others: it raises ``Failure``, and Ray Train ends its whole group.

The others may be waiting for it in a collective for up to a day, and hear nothing from it. Ray looks at every worker
every two seconds. As soon as one has raised, it kills all of them, wherever they are, and the driver takes the first
cause from what they have raised by then.
"""

import platform
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from ima_dist.config.errors import one_line

# Seconds that a worker waits with an exception that is only the consequence of another worker's failure or death: that
# must reach Ray first, and then ends this wait.
_CAUSE_WITHIN = 20.0


class Failure(Exception):
    """What one worker has met, as text and numbers: Ray's processes may be unable to read the exception itself.

    Args:
        sentence: for the user.
        final: the run is at fault, or its files, so that starting other workers is of no use.
        consequence: a collective has failed, or worker 0 has told of its failure; seldom a first cause.
        moment: when it was raised (Unix time).
    """

    def __init__(
        self, sentence: str, final: bool, consequence: bool = False, rank: int = 0, host: str = "", moment: float = 0.0
    ) -> None:
        # All of them, so that it can be pickled.
        super().__init__(sentence, final, consequence, rank, host, moment)
        self.sentence, self.final, self.consequence = sentence, final, consequence
        self.rank, self.host, self.moment = rank, host, moment

    @classmethod
    def now(cls, rank: int, sentence: str, final: bool, consequence: bool = False) -> Self:
        """Of this worker, at this moment."""
        return cls(sentence, final, consequence, rank, platform.node(), time.time())

    def __str__(self) -> str:
        return self.sentence


def failing_together(work: Callable[[dict[str, Any]], dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """``work(payload)``, or Failure in place of the answers "failed" and "lost" and of every exception."""
    # Here, because the driver opens without torch.
    from ima_dist.core import distributed

    rank = distributed.rank()
    with distributed.in_step():
        try:
            answer = work(payload)
        except BaseException as error:  # a sys.exit() in the user's code, too
            failure = Failure.now(rank, one_line(error), final=False, consequence=_is_consequence(error))
            if failure.consequence:
                time.sleep(_CAUSE_WITHIN)
            raise failure from error
    # A lost lease, too: worker 0 may find out when it writes something alone.
    if answer["status"] in ("failed", "lost"):
        raise Failure.now(rank, answer["message"], final=True)
    return answer


def first_cause(failures: Iterable[Failure]) -> Failure | None:
    """The failure that came first, but a consequence of another only if there is no other; None of none."""
    return min(failures, key=lambda failure: (failure.consequence, failure.moment), default=None)


def _is_consequence(error: BaseException) -> bool:
    """Whether a collective has failed, as it does when another worker has gone, or worker 0 has failed."""
    import torch.distributed as dist

    from ima_dist.core.distributed import REPEATED, is_closed

    # gloo's errors have no type of their own, but name its files.
    failed = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))
    return failed or is_closed() or REPEATED in getattr(error, "__notes__", ())
