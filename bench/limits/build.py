"""Compiles the C limits on demand into build/bench; the name carries a hash, so a change is a new file."""

import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

from bench.machine import REPOSITORY

SOURCES = Path(__file__).resolve().parent
OUTPUT = REPOSITORY / "build" / "bench"
FLAGS = ("-std=gnu11", "-O3", "-Wall", "-Wextra", "-pthread")


def program(name: str) -> Path:
    """The executable made from ``<name>.c``."""
    return _compile(name, "", ())


def extension(name: str, module: str) -> ModuleType:
    """The Python extension ``module`` made from ``<name>.c``."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    path = _compile(name, suffix, ("-shared", "-fPIC", "-I", sysconfig.get_path("include")))
    loader = importlib.machinery.ExtensionFileLoader(module, str(path))
    spec = importlib.util.spec_from_file_location(module, path, loader=loader)
    assert spec is not None
    found = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    return found


def build_all() -> None:
    """Compile everything now, so that no run waits for the compiler."""
    program("ring_trips")
    program("semaphore_trips")
    extension("ring_module", "bench_ring")


def _compile(name: str, suffix: str, options: tuple[str, ...]) -> Path:
    compiler = shlex.split(os.environ.get("CC") or "cc")
    digest = hashlib.sha256(repr((compiler, FLAGS, options)).encode())
    for source in sorted((*SOURCES.glob("*.h"), SOURCES / f"{name}.c")):
        digest.update(source.read_bytes())
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}-{digest.hexdigest()[:12]}{suffix}"
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        command = (*compiler, *FLAGS, *options, str(SOURCES / f"{name}.c"), "-o", str(unfinished))
        subprocess.run(command, check=True)
        unfinished.replace(path)
    return path
