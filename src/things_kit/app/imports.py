"""What is to be done once a module is imported, without importing it for that."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


@contextmanager
def once_imported(name: str, enter: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Have the context entered as soon as the module `name` has been imported, by whomever; now if it has been.

    It is left when this one is, if it was entered.
    """
    with ExitStack() as stack:
        if name in sys.modules:
            stack.enter_context(enter())
            yield
            return
        watching = _Watching(name, lambda: stack.enter_context(enter()))
        sys.meta_path.insert(0, watching)
        try:
            yield
        finally:
            with suppress(ValueError):  # it saw the module, and left by itself
                sys.meta_path.remove(watching)


class _Watching(MetaPathFinder):
    """Finds one module the way it is found without it, and sees the end of its import."""

    def __init__(self, name: str, imported: Callable[[], object]) -> None:
        self._name = name
        self._imported = imported

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Seen(spec.loader, self._imported)
        return spec


class _Seen(Loader):
    def __init__(self, loader: Loader, imported: Callable[[], object]) -> None:
        self._loader = loader
        self._imported = imported

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = (
                self._loader
            )  # whoever asks it for resources gets the real one
        self._loader.exec_module(module)
        self._imported()
