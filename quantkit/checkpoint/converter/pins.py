"""Which llama.cpp the converter is of, and which packages it runs with.

The first is what `vendor/manifest.toml` says, for tests and users alike: one pin for the converter
that describes, and for the tools that what comes of it is compared with. The packages are a
requirements file with the hash of every wheel.
"""

import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.files import read_file
from quantkit.core.profiles import load_vendor_manifest, profiles_folder


@dataclass(frozen=True, slots=True)
class Pins:
    """A source archive of the package index, and a requirements file.

    ``tree`` is the folder of llama.cpp in the archive, below its top folder. ``packages`` holds
    names, versions and hashes as pip takes them.
    """

    package: str
    version: str
    sha256: str
    tree: str
    packages: Path

    @property
    def name(self) -> str:
        """What people call this converter."""
        return f"llama.cpp of {self.package} {self.version}"

    @property
    def wanted(self) -> str:
        """Names and versions of the packages, for people."""
        lines = read_file(self.packages).decode().splitlines()
        pairs = (line.removesuffix("\\").strip().split("==") for line in lines if "==" in line)
        return ", ".join(" ".join(pair) for pair in pairs if len(pair) == 2 and pair[0][0] != "#")


def load_pins() -> Pins:
    """The pins of this quantkit."""
    source = load_vendor_manifest()["source"]
    return Pins(
        package=source["package"],
        version=source["version"],
        sha256=source["sha256"],
        tree=source["tree"],
        packages=profiles_folder() / "converter" / "packages.txt",
    )


def kind_of_python() -> str:
    """What compiled packages are made for, such as ``cpython-311-x86_64-linux-gnu``."""
    kind = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
    machine = platform.machine()
    return kind if machine in kind else f"{kind}-{machine}"
