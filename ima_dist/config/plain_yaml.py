"""YAML without aliases, as we write it: a short file with aliases can stand for gigabytes."""

from typing import Any

import yaml

# In C where libyaml is there: ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def load_plain(text: str) -> Any:
    """The content of a YAML text. Raises yaml.YAMLError, also for aliases and for values nested too deeply."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            raise yaml.YAMLError("it has aliases, which a file of ours never has")
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("its values are nested too deeply") from None


def dump_plain(tree: Any) -> str:
    """The text of a tree of plain values, in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
