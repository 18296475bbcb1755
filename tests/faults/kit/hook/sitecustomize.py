"""On the PYTHONPATH of a Ray under test: when a process imports raycnn's worker, what it trains is written down."""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

_WATCHED = "raycnn.training.worker"


class _Watch(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        execute = spec.loader.exec_module

        def execute_and_watch(module):
            execute(module)
            from tests.faults.kit.inside import watch

            watch()

        spec.loader.exec_module = execute_and_watch
        return spec


sys.meta_path.insert(0, _Watch())
