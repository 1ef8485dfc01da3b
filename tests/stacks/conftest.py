"""What is here is collected where a stack is installed: `make test-stacks`, not `make test`."""

from importlib.util import find_spec

IMPORTED_AS = {"flower": "flwr", "nvflare": "nvflare", "ray": "ray"}

collect_ignore = [folder for folder, name in IMPORTED_AS.items() if find_spec(name) is None]
if len(collect_ignore) == len(IMPORTED_AS):
    collect_ignore.append("test_beside.py")
