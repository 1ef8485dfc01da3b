"""Show what `import secagg` loads, in isolated interpreters.

`check_light_import.py [FOLDER]` takes the package from FOLDER in place of the environment.

numpy and cryptography load standard-library modules of their own, in some versions `logging` or
`random` among them. What counts is what secagg adds: the modules loaded after `import secagg`, less
those that the very same third-party modules load without it.
"""

import subprocess
import sys

DEPENDENCIES = ("numpy", "cryptography", "Crypto", "blake3", "nacl")
FORBIDDEN = {
    *("asyncio", "concurrent", "logging", "multiprocessing", "pickle", "random", "secrets"),
    *("socket", "ssl", "sqlite3", "subprocess", "threading", "argparse", "importlib.metadata"),
}
HEAVY = {
    *("alembic", "google", "grpc", "numba", "peft", "pydantic", "rich", "safetensors"),
    *("sqlalchemy", "tenseal", "torch", "transformers"),
}


def loaded_after(statements: str) -> set[str]:
    program = f"import sys\nsys.path[:0] = {sys.argv[1:]!r}\n{statements}\nprint(*sys.modules)"
    command = [sys.executable, "-I", "-c", program]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def main() -> int:
    with_secagg = loaded_after("import secagg")
    needed = {name for name in with_secagg if name.partition(".")[0] in DEPENDENCIES}
    # Some dependencies create modules that cannot be imported by name.
    attempts = "".join(
        f"try:\n    import {name}\nexcept ImportError:\n    pass\n" for name in sorted(needed)
    )
    without_secagg = loaded_after(attempts)
    ours = {name for name in with_secagg - without_secagg if name.partition(".")[0] != "secagg"}
    wrong = {name for name in ours if name in FORBIDDEN or name.partition(".")[0] in FORBIDDEN}
    wrong |= {name for name in with_secagg if name.partition(".")[0] in HEAVY}
    foreign = {name for name in with_secagg if name.partition(".")[0].startswith("secagg_")}
    print("import secagg adds, of the standard library:", *sorted(ours))
    if wrong or foreign:
        print("import secagg may not load:", *sorted(wrong | foreign), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
