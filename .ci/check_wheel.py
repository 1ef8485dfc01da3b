"""Build the wheel, install it with its base dependencies alone, and look at what a user would get.

Checks: the wheel's top-level names; package data; that `import secagg` brings nothing beyond numpy
and the crypto libraries; that `secagg --help` works and that a command without its extra says so.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    "secagg",
    "secagg_wire",
    "secagg_tenant",
    "secagg_coordinator",
    "secagg_models",
    "secagg_owner",
    "secagg_embed",
    "secagg_demo",
}


def main() -> int:
    wheel = build(REPOSITORY / "dist")
    check_names(wheel)
    with tempfile.TemporaryDirectory() as folder:
        python = install(wheel, Path(folder))
        run(python, "-I", str(REPOSITORY / ".ci" / "check_light_import.py"))
        command = python.parent / "secagg"
        run(command, "--help")
        missing = subprocess.run(
            [command, "coordinator", "--help"], capture_output=True, text=True, check=False
        )
        if missing.returncode != 3 or "pip install 'secagg[node]'" not in missing.stderr:
            raise SystemExit(
                f"without the extra: exit {missing.returncode}, said {missing.stderr!r}"
            )
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, names and light import as promised")
    return 0


def build(folder: Path) -> Path:
    for stale in folder.glob("secagg-*.whl"):
        stale.unlink()
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY))
    (wheel,) = folder.glob("secagg-*.whl")
    return wheel


def check_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top_level = {name.partition("/")[0] for name in names}
    packages = {name for name in top_level if not name.endswith(".dist-info")}
    if packages != TOP_LEVEL:
        raise SystemExit(f"the wheel's top-level names are {sorted(packages)}")
    untyped = {package for package in TOP_LEVEL if f"{package}/py.typed" not in names}
    if untyped:
        raise SystemExit(f"no py.typed in {sorted(untyped)}")


def install(wheel: Path, folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    constraints = str(REPOSITORY / "constraints.txt")
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(python, *pip, "-c", constraints, str(wheel))
    return python


def run(*command: str | Path) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
