"""Models that take exactly what they state, and their mistakes as one sentence for the user."""

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ima_dist.config.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class Checked(BaseModel):
    """Immutable; no value is converted to another type, except a whole number to a float."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


@dataclass(frozen=True)
class Accepts:
    """What an entry takes: one value of ``kinds``, or a list of them (``many``); one of ``choices``, if there are
    any; within ``limits`` (gt, ge, lt, le)."""

    kinds: tuple[Any, ...]
    choices: tuple[str, ...] = ()
    many: bool = False
    limits: dict[str, float] = field(default_factory=dict)


def accepts(annotation: Any, metadata: Any = ()) -> Accepts:
    """What an annotation accepts, None aside."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return accepts(args[0], args[1:])
    if origin is tuple:
        return replace(accepts(args[0]), many=True)
    if origin is typing.Literal:
        return Accepts((str,), args)
    if origin in (typing.Union, types.UnionType):
        kinds = tuple(kind for kind in args if kind is not type(None))
        return accepts(kinds[0], metadata) if len(kinds) == 1 else Accepts(kinds)
    limits = {k: getattr(m, k) for m in metadata for k in ("gt", "ge", "lt", "le") if hasattr(m, k)}
    return Accepts((origin or annotation,), limits=limits)


def validated(model: type[Model], values: Any, owner: str, label: Callable[[str], str] = lambda name: name) -> Model:
    """``values`` as a ``model``. Raises ConfigError: ``owner`` is what holds the entries, ``label(dotted name)`` is
    how its user writes one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A misspelt name is why another one is missing.
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(_sentence(first, model, owner, label)) from None


def _sentence(error: Any, model: type[BaseModel], owner: str, label: Callable[[str], str]) -> str:
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    names: list[str] = []
    found, inside = None, typing.cast("type[BaseModel] | None", model)
    for part in error["loc"]:
        if inside is None:
            break
        siblings = inside.model_fields
        names.append(str(part))
        found = siblings.get(part)
        kind = accepts(found.annotation).kinds[0] if found else None
        inside = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    name = ".".join(names)
    if error["type"] == "missing":
        return f"{owner} lacks the entry {name!r}."
    if found is None and name:
        return f"{owner} has an unknown entry {name!r}{did_you_mean(names[-1], siblings)}."
    if found is None:
        return f"{owner} must be a mapping of names to values."
    takes = accepts(found.annotation, found.metadata)
    words = str(cause) if cause else _words(takes, error["type"], listed=len(error["loc"]) > len(names))
    value = repr(error["input"])
    shown = value if len(value) < 80 else value[:76] + " …"
    subject = label(name) if inside is None else f"{owner}: {name}"
    return f"{subject} must {words}, not {shown}{_meant(error['input'], takes.choices)}."


# Other tools' names of values, in lower case, without dashes and underscores.
_SYNONYMS = {
    **dict.fromkeys(("gpu", "gpus", "cuda:0", "nvidia"), "cuda"),
    **dict.fromkeys(("inf", "infinity", "max", "lmax", "linfinity", "l∞"), "linf"),
    **dict.fromkeys(("2", "euclidean", "l₂"), "l2"),
    **dict.fromkeys(("pgd", "at", "pgdat", "madry", "adversarial"), "adv"),
    **dict.fromkeys(("standard", "clean", "natural", "crossentropy", "none", "erm"), "ce"),
    **dict.fromkeys(("fp16", "half", "amp"), "float16"),
    **dict.fromkeys(("bf16",), "bfloat16"),
    **dict.fromkeys(("fp32", "single", "float"), "float32"),
    **dict.fromkeys(("fp64", "double"), "float64"),
    **dict.fromkeys(("pgd20", "pgd50"), "pgd100"),
    **dict.fromkeys(("aa", "apgd"), "autoattack"),
}


def _meant(value: Any, choices: tuple[str, ...]) -> str:
    plain = str(value).lower().replace("-", "").replace("_", "")
    same = next((choice for choice in choices if choice.replace("-", "") == plain), _SYNONYMS.get(plain))
    return f" (did you mean {same}?)" if same in choices else did_you_mean(value, choices)


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping"}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _words(takes: Accepts, error: str, listed: bool) -> str:
    if error == "too_short":
        return "have at least one entry"
    if takes.many and not listed:
        return "be a list"
    if takes.choices:
        return f"be one of {', '.join(takes.choices)}"
    if error.endswith("_type") or not takes.limits:
        return "be " + " or ".join(_KINDS.get(kind, "a mapping of names to values") for kind in takes.kinds)
    if {"ge", "le"} <= set(takes.limits):
        return f"lie between {takes.limits['ge']} and {takes.limits['le']}"
    return "be " + " and ".join(f"{_LIMITS[k]} {v}" for k, v in takes.limits.items())
