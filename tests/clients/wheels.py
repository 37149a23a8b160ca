"""Imports single modules of a wheel, unmodified, without installing what the whole package needs."""

import importlib
import importlib.abc
import importlib.machinery
import subprocess
import sys
import types
import zipfile
from pathlib import Path


def unpack(requirement: str, folder: Path) -> Path:
    """Downloads a wheel and unpacks it. Answers the folder that holds its packages."""
    place = folder / requirement.replace("==", "-")
    if not place.exists():
        downloads = folder / f"{place.name}.download"
        # The wheels hold Python alone, whatever their names say: any interpreter may read them.
        platform = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311"]
        platform += ["--abi=none", "--platform=manylinux1_x86_64", "--platform=any"]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *platform]
        subprocess.run([*command, "-d", downloads, requirement], check=True)
        (wheel,) = downloads.glob("*.whl")
        partial = folder / f"{place.name}.partial"
        zipfile.ZipFile(wheel).extractall(partial)
        partial.rename(place)
    purelib = list(place.glob("*.data/purelib"))
    return purelib[0] if purelib else place


class Stub(types.ModuleType):
    """Stands for a heavy module: has every name, and is a decorator that changes nothing."""

    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub(f"{self.__name__}.{name}")

    def __call__(self, *arguments, **_):
        return arguments[0] if arguments else self


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stubs for the named modules and everything in them."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if any(name == stub or name.startswith(stub + ".") for stub in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        pass


def load(root: Path, modules: list[str], stubs: list[str], attributes=None):
    """Imports modules of one package from an unpacked wheel; answers the last. The packages around them do
    not run their `__init__`: they have `attributes`, a stub for each name of a package. The modules in
    `stubs` are stubs."""
    top = modules[0].split(".")[0]
    for name in [name for name in sys.modules if name == top or name.startswith(top + ".")]:
        del sys.modules[name]
    finder = StubFinder(stubs)
    sys.meta_path.insert(0, finder)
    try:
        for module in modules:
            parts = module.split(".")
            for depth in range(1, len(parts)):
                name = ".".join(parts[:depth])
                if name not in sys.modules:
                    package = types.ModuleType(name)
                    package.__path__ = [str(root.joinpath(*parts[:depth]))]
                    for attribute in (attributes or {}).get(name, []):
                        setattr(package, attribute, Stub(f"{name}.{attribute}"))
                    sys.modules[name] = package
            loaded = importlib.import_module(module)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, found in sys.modules.items() if isinstance(found, Stub)]:
            del sys.modules[name]
    assert loaded.__file__.startswith(str(root)), loaded.__file__
    return loaded
