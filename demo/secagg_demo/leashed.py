"""Run a command that ends with its parent: `python leashed.py PARENT_PID COMMAND...` (Linux).

The process asks the kernel for SIGKILL at its parent's death and becomes the command. A launcher
does this, and not a hook between fork and exec: there gRPC's own fork handlers run, in a process
whose threads are gone, and have been seen to abort it. Run as a file, with nothing imported from
the package, so that it costs milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by the command."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)  # it died before the kernel was asked
    os.execvp(command[0], command)  # noqa: S606  the whole purpose


if __name__ == "__main__":
    main()
