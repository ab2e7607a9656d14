"""The compiled functions: builds the C++ sources of `embcomp/native` once per machine, and loads them with ctypes.

The build needs only a C++ compiler (`$CXX`, `c++`, `g++` or `clang++`; `$EMBCOMP_CXXFLAGS` adds options) and is kept in
a cache folder (`$EMBCOMP_CACHE`, else `$XDG_CACHE_HOME/embcomp`, else `~/.cache/embcomp`). It takes about ten seconds,
so the logger `embcomp` announces it. Without a compiler, or with `EMBCOMP_NATIVE=0`, `library()` returns None and the
torch forms are used; without a compiler a warning says so once. A wheel for one platform has the functions compiled for
its common processors (`hatch_build.py`): they are loaded where the processor has what they need, without a build.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from embcomp.files import replacing

_SOURCES = Path(__file__).parent.parent / "native"
_SHIPPED = _SOURCES / "compiled.so"
_NEEDED = {"x86_64": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}}
"""What compiled functions of a wheel need of a processor, by machine: on x86-64 its third level."""


_log = logging.getLogger("embcomp")


class NativeUnavailable(RuntimeError):
    """The error that there is no compiled form on this machine; the text gives the reason."""


def _compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise NativeUnavailable("no C++ compiler found (set CXX, or install g++ or clang++)")


def _flags() -> list[str]:
    """The options of the compiler; those of `$EMBCOMP_CXXFLAGS` come last, so that they take precedence."""
    given = (_SOURCES / "flags.txt").read_text().split()
    return [*given, "-march=native", *shlex.split(os.environ.get("EMBCOMP_CXXFLAGS", ""))]


def _cache_folder() -> Path:
    if os.environ.get("EMBCOMP_CACHE"):
        return Path(os.environ["EMBCOMP_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embcomp"
    except RuntimeError as error:  # a user without a home folder, as in some containers
        raise NativeUnavailable(f"{error} set EMBCOMP_CACHE to a folder") from error


def _processor() -> str:
    """The facts that `-march=native` depends on, so that machines with a shared home folder keep separate builds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        return platform.processor() + platform.machine()


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise NativeUnavailable(f"`{shlex.join(command[:2])} ...` failed: {detail.strip()[-500:]}") from error


def shipped() -> Path | None:
    """Return the library of the wheel; None if there is none, or if this processor or an option needs another."""
    if not _SHIPPED.exists() or os.environ.get("EMBCOMP_CXXFLAGS"):
        return None
    needed = _NEEDED.get(platform.machine(), set())
    return _SHIPPED if needed <= set(_processor().split()) else None


def _compile(command: list[str], sources: list[Path], target: Path) -> None:
    """Compile the sources side by side, and link them."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, ThreadPoolExecutor(os.cpu_count()) as threads:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        pairs = zip(map(str, sources), objects, strict=True)
        list(threads.map(_run, [[*command, "-c", source, "-o", made] for source, made in pairs]))
        _run([*command, *objects, "-o", str(target)])


def build() -> Path:
    """Return the path of the shared library, compiling it first if needed. Raise `NativeUnavailable` if that fails."""
    compiler = _compiler()
    built = [*compiler, *_flags()]
    sources = sorted(_SOURCES.glob("*.cpp"))
    parts = [source.read_bytes() for source in [*sources, *sorted(_SOURCES.glob("*.h"))]]
    parts += [_run([*compiler, "--version"]).encode(), " ".join(built).encode(), _processor().encode()]
    target = _cache_folder() / f"embcomp-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:20]}.so"
    if target.exists():
        return target
    # Logged, not warned: nothing is wrong, and where warnings are errors there would be no compiled form.
    _log.warning("embcomp compiles its C++ for this machine: once, some ten seconds, into %s", target.parent)
    try:
        with replacing(target) as made:  # another process may be building too
            _compile(built, sources, made)
    except OSError as error:
        raise NativeUnavailable(f"cannot write {target.parent} ({error}); set EMBCOMP_CACHE") from error
    return target


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions, or None if they are unavailable, with one warning.

    Example:
        >>> from embcomp.ops import native
        >>> lib = native.library()
        >>> lib is None or hasattr(lib, "hash_rows")
        True
    """
    if os.environ.get("EMBCOMP_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(shipped() or build()))
    except (NativeUnavailable, OSError) as error:
        warnings.warn(f"embcomp: {error}. Slower torch code is used instead.", RuntimeWarning, stacklevel=2)
        return None


def within_memory(function: Any, *arguments: Any) -> None:
    """Call a compiled function that needs memory of its own, and that returns how many bytes it missed.

    Raises:
        MemoryError: they cannot be had; the text names the function and the bytes that it asked for. What it was to
            write may have been written in part.
    """
    function.restype = ctypes.c_size_t
    if missing := function(*arguments):
        asked = f"{missing:,} bytes" if missing > 1 else "what it keeps beside its arguments"
        raise MemoryError(f"{function.__name__}: there is no memory for {asked}; give it less at once, or free memory")
