"""Exact versions of everything that `itnet[dev]` needs, as installed here: `python tools/pins.py > constraints.txt`."""
import importlib.metadata as metadata
import sys
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement

SETTINGS = Path(__file__).resolve().parent.parent / "settings.ini"
HEADER = """\
# The development environment, exactly: `pip install -c constraints.txt -e '.[dev]'`. Written by tools/pins.py.
# Versions carry no build suffix, so that any build of torch fits."""


def direct() -> list[Requirement]:
    "The requirements that settings.ini names, for use and for development."
    parser = ConfigParser(delimiters=["="])
    parser.read(SETTINGS, encoding="utf-8")
    lines = (value for key, value in parser["DEFAULT"].items() if key.endswith("requirements"))
    found = [Requirement(r) for value in lines for r in value.split()]
    return [r for r in found if r.marker is None or r.marker.evaluate()]


def needed(parent: Requirement) -> list[Requirement]:
    "What an installed distribution needs on this machine, with the extras asked of it."
    found = [Requirement(r) for r in metadata.distribution(parent.name).requires or []]
    extras = parent.extras or {""}
    return [r for r in found if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]


def pins() -> dict[str, str]:
    "Version by name, for the direct requirements and all that they need."
    done, todo, found = set(), direct(), {}
    while todo:
        requirement = todo.pop()
        key = (requirement.name.lower().replace("_", "-"), frozenset(requirement.extras))
        if key in done: continue
        done.add(key)
        installed = metadata.distribution(requirement.name)
        found[installed.metadata["Name"]] = installed.version.partition("+")[0]
        todo += needed(requirement)
    return found


if __name__ == "__main__":
    lines = sorted((f"{name}=={version}" for name, version in pins().items()), key=str.lower)
    sys.stdout.write("\n".join([HEADER, *lines]) + "\n")
