"""What binds every child of poise: it ends with its parent, knows no secrets and leaves no core dump.

    subprocess.Popen([sys.executable, "-m", "poise.engine.leash", MODULE, ...], env=child_environment())

runs a module of poise that the kernel ends with SIGTERM when its parent is gone, also after `kill -9`; a module that is started
by its own name calls `tie_to_parent` first. The kernel means the parent's *thread*: start children from one that lives as long.
"""

import contextlib
import ctypes
import os
import resource
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
PARENT = "_POISE_PARENT"
"""Environment variable with the process that a child belongs to."""
_KEPT = ("POISE_LOG",)


def child_environment() -> dict[str, str]:
    """This process's environment without poise's own variables, as keys: what a child needs to know it is passed otherwise."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POISE_") or name in _KEPT}
    return kept | {PARENT: str(os.getpid())}


def tie_to_parent(number: int = signal.SIGKILL) -> None:
    """This process is sent a signal when its parent ends, and ends now if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        parent = os.environ.get(PARENT)
        if os.getppid() == 1 if parent is None else os.getppid() != int(parent):
            sys.exit(1)


def no_core_dumps() -> None:
    """For this process and every child that it starts from now on. A core dump would put prompts and keys on a disk.

    The limit keeps files from being written. A program that the kernel hands dumps to (`|` in core_pattern) is not bound by it,
    so memory is left out of dumps, too. PR_SET_DUMPABLE is not used: it would hide /proc/PID from its own user, and with it the
    descriptors and mappings that tests and operators look at."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        control = os.open("/proc/self/coredump_filter", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, b"0")
        finally:
            os.close(control)


def main() -> None:
    """Ties this process to its parent, then becomes the module."""
    tie_to_parent(signal.SIGTERM)
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
