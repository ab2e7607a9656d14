"""What the build adds to pyproject.toml: the README as an index shows it, and the runner under names of its own.

With EMBCOMP_WHEEL_NATIVE=1 the wheel carries the compiled functions: for the machine that builds it, or for that of
EMBCOMP_WHEEL_MACHINE (x86_64 or aarch64). Zig compiles for either, where it is installed (the package `ziglang`) and no
$CXX is set; else $CXX or c++ must compile for the machine.
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https://)[^)]*\)\n*")
_LINK = re.compile(r"\[([^\]]*)\]\((?!https://)([^)]*)\)")

SHIPPED = {"experiments": "embcomp_experiments", "data": "embcomp_data"}
"""Packages of the checkout whose names are too common for an environment, and their names in the wheel."""

_MARCH = {"x86_64": ["-march=x86-64-v3"], "aarch64": []}
"""The processors that compiled functions of a wheel are for; `embcomp.ops.native` asks whether it runs on one."""

_ZIG_MARCH = {"x86_64": ["-march=x86_64_v3"], "aarch64": []}
"""The same in Zig's words."""

_ZIG_GLIBC = "2.28"  # of manylinux_2_28, whose name promises no newer

_MACHINE_NUMBERS = {62: "x86_64", 183: "aarch64"}  # of ELF files

_LEFT_OUT = {"__pycache__", "results"}
# Imports, names of modules in quotes, and commands. `"data.` in quotes is a key of a TOML file.
_NAMES = [
    (re.compile(r"^(\s*)import (experiments|data)$", re.MULTILINE), r"\1import embcomp_\2 as \2"),
    (re.compile(r"^(\s*(?:from|import) )(experiments|data)(?=[. ])", re.MULTILINE), r"\1embcomp_\2"),
    (re.compile(r"(?<=[\"'])experiments(?=\.[a-z_]+\.)"), "embcomp_experiments"),
    (re.compile(r"(?<=-m )(experiments|data)\b"), r"embcomp_\1"),
    (re.compile(r"\bexperiments/configs\b"), "embcomp_experiments/configs"),
    (re.compile(r"\bexperiments/results\b"), "results"),
]


class CustomMetadataHook(MetadataHookInterface):
    """Set the fields `readme` and `urls`.

    No address of the project is known here: whoever publishes it names one in EMBCOMP_PROJECT_URL, and links of the
    README into the checkout then lead there.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        """Put README.md into `metadata`: relative links become those of the address, or their text without one."""
        address = os.environ.get("EMBCOMP_PROJECT_URL", "").rstrip("/")
        if address:
            metadata["urls"] = {
                "Homepage": address,
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
                "Documentation": f"{address}/tree/main/docs",
                "Issues": f"{address}/issues",
            }
        link = rf"[\1]({address}/blob/main/\2)" if address else r"\1"
        parts = _FENCE.split((Path(self.root) / "README.md").read_text(encoding="utf-8"))
        parts[::2] = [_LINK.sub(link, _IMAGE.sub("", part)) for part in parts[::2]]  # the others are code
        metadata["readme"] = {"content-type": "text/markdown", "text": "".join(parts)}


class CustomBuildHook(BuildHookInterface):
    """The hook that adds `experiments` and `data` to the wheel as `embcomp_experiments` and `embcomp_data`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the packages under their new names to a temporary folder, from which the build takes them."""
        if self.target_name != "wheel" or version == "editable":
            return
        self.folder = Path(tempfile.mkdtemp())
        for package, name in SHIPPED.items():
            for path in sorted((Path(self.root) / package).rglob("*")):
                inside = path.relative_to(Path(self.root) / package)
                if path.is_dir() or _LEFT_OUT & set(inside.parts) or path.suffix == ".pyc":
                    continue
                new = self.folder / name / inside
                new.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".py":
                    new.write_text(renamed(path.read_text(encoding="utf-8")), encoding="utf-8")
                else:
                    shutil.copyfile(path, new)
                build_data["force_include"][str(new)] = f"{name}/{inside}"
        if os.environ.get("EMBCOMP_WHEEL_NATIVE") == "1":
            compiled = self.folder / "compiled.so"
            compile_native(Path(self.root) / "embcomp" / "native", compiled)
            build_data["force_include"][str(compiled)] = "embcomp/native/compiled.so"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag(compiled.read_bytes())}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder."""
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def compile_native(sources: Path, target: Path) -> None:
    """Compile the C++ of `embcomp/native` for the common processors of a machine's kind, libstdc++ included."""
    machine = os.environ.get("EMBCOMP_WHEEL_MACHINE") or platform.machine()
    if machine not in _MARCH:
        raise RuntimeError(f"no wheel with compiled functions is built for {machine}: only for {', '.join(_MARCH)}")
    compiler, own = compiler_for(machine)
    flags = [*(sources / "flags.txt").read_text().split(), *own, "-s"]
    flags += shlex.split(os.environ.get("EMBCOMP_CXXFLAGS", ""))
    subprocess.run([*compiler, *flags, *sorted(map(str, sources.glob("*.cpp"))), "-o", str(target)], check=True)
    made = machine_of(target.read_bytes())
    if made != machine:
        raise RuntimeError(
            f"{shlex.join(compiler)} compiles for {made}, not for {machine}: set CXX to another, or install ziglang"
        )


def compiler_for(machine: str) -> tuple[list[str], list[str]]:
    """Return the compiler for a machine, and its options by which the library holds all of C++ that it needs."""
    given = shlex.split(os.environ.get("CXX", ""))
    if not given and importlib.util.find_spec("ziglang"):
        target = f"{machine}-linux-gnu.{_ZIG_GLIBC}"
        return [sys.executable, "-m", "ziglang", "c++", "-target", target], _ZIG_MARCH[machine]
    return given or ["c++"], [*_MARCH[machine], "-static-libstdc++", "-static-libgcc"]


def machine_of(library: bytes) -> str:
    """Return the machine that a shared library is for, by the number in its ELF header."""
    number = int.from_bytes(library[18:20], "little")
    return _MACHINE_NUMBERS.get(number, f"ELF machine {number}")


def platform_tag(library: bytes) -> str:
    """Return the tag of a wheel with this shared library: manylinux with the newest glibc whose symbols it uses."""
    versions = [(int(major), int(minor)) for major, minor in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", library)]
    if not versions:  # of another C library
        return re.sub("[-.]", "_", sysconfig.get_platform())
    major, minor = max(versions)
    return f"manylinux_{major}_{max(minor, 17)}_{machine_of(library)}"


def renamed(code: str) -> str:
    """Return code with the packages of `SHIPPED` under the names that they have in the wheel."""
    for pattern, new in _NAMES:
        code = pattern.sub(new, code)
    return code
