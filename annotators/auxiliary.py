"""controlnet_aux one module at a time.

Its `__init__` imports all of its detectors at once: seconds, timm, scikit-image, and mediapipe, whose releases since
0.10.30 lack the `solutions` that it asks for, so that the import dies. We take the submodule alone, under an empty
package that stands in only while it is imported. What we took is ours: who imports controlnet_aux gets the whole.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import warnings
from types import ModuleType

PACKAGE = "controlnet_aux"

_IMPORTING = threading.RLock()
_taken: dict[str, ModuleType] = {}  # by full name; the stand-in among them


def module(name: str) -> ModuleType:
    """`controlnet_aux.NAME`, without the rest of the package."""
    whole = f"{PACKAGE}.{name}"
    with _IMPORTING:
        if whole in _taken:
            return _taken[whole]
        if PACKAGE in sys.modules:
            return importlib.import_module(whole)
        sys.modules.update(_taken or {PACKAGE: _stand_in()})
        try:
            with warnings.catch_warnings():  # of what its dependencies deprecate, which is nothing to our callers
                warnings.simplefilter("ignore")
                return importlib.import_module(whole)
        finally:
            for each in [each for each in sys.modules if each == PACKAGE or each.startswith(f"{PACKAGE}.")]:
                _taken[each] = sys.modules.pop(each)


def _stand_in() -> ModuleType:
    """The package with nothing in it but the place where its modules lie."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("controlnet-aux is not installed: pip install controlnet-aux")
    package = ModuleType(PACKAGE)
    package.__path__ = list(spec.submodule_search_locations)
    return package
