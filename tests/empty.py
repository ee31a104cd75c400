"""Makes an environment that holds a wheel and what it requires, and nothing else.

The packages are links to those of the environment that runs this file: what pip has chosen and unpacked once is not unpacked again.

python tests/empty.py dist/embedfit-*.whl offline build/empty
"""

import os
import subprocess
import sys
import venv
from importlib.metadata import distribution, distributions
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(requirements, extras=frozenset()):
    """Yield the distributions that are required, and what they require; extras count for the requirements given, as they do for pip."""
    waiting, done = [(line, frozenset(extras)) for line in requirements], set()
    while waiting:
        line, extras = waiting.pop()
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        found = distribution(requirement.name)
        assert requirement.specifier.contains(found.version, prereleases=True), f"{line}, and not {found.version}"
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in done:
            continue
        if key[0] not in {name for name, _ in done}:
            yield found
        done.add(key)
        waiting += [(line, key[1]) for line in found.requires or ()]


def link(found, site):
    """Link the files of a distribution, without its commands."""
    for file in found.files:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(found.locate_file(file), target)


def main():
    wheel, extra, folder = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])
    venv.create(folder, clear=True, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-compile", wheel], check=True)
    [own] = distributions(name=ZipFile(wheel).namelist()[0].partition("/")[0], path=[str(site)])
    for found in required(own.requires, {extra}):
        link(found, site)
    subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
