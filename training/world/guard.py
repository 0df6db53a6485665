"""Ties the engine to the life of its owner, and clears up after both. `write_wrapper` has it run as a script.

ViZDoom's engine outlives a killed Python. The guard stands between the two: it starts the engine as its own child and
waits for either to end. If it is the owner, it ends the engine and removes what they left on disk and in shared memory.
"""

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
POLL_S = 0.25
SHARED_MEMORY = Path("/dev/shm")


def write_wrapper(folder: Path, program: Path) -> Path:
    """An executable in `folder` that runs `program` with the same arguments for as long as this process lives.

    When this process dies, `folder` is removed with everything in it.
    """
    wrapper = folder / "engine"
    words = [sys.executable, "-IS", str(Path(__file__).resolve()), str(os.getpid()), str(folder), str(program)]
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    wrapper.chmod(0o700)
    return wrapper


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when its parent ends: a killed guard leaves no engine either."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # a zombie answers signals but is dead
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _watch(owner: int, folder: Path, command: list[str]) -> int:
    linux = sys.platform == "linux"
    # It makes a folder where it runs, and does not start where another just made it: each runs in a place of its own.
    # The guard has one thread, so running Python between fork and exec is safe.
    engine = subprocess.Popen(command, cwd=folder, preexec_fn=_die_with_parent if linux else None)  # noqa: PLW1509

    def stop(_signal: int, _frame: object) -> None:
        engine.kill()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides what Ctrl-C means, then closes
    while engine.poll() is None and _alive(owner):
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.wait(POLL_S)
    if engine.poll() is None:
        engine.kill()
        engine.wait()
    if not _alive(owner):
        shutil.rmtree(folder, ignore_errors=True)
        _remove_shared_memory(command)
    return engine.returncode


def _remove_shared_memory(command: list[str]) -> None:
    """Remove the engine's shared memory, which only a proper close removes. Its names end in the instance's id."""
    with contextlib.suppress(ValueError, IndexError):
        instance = command[command.index("+viz_instance_id") + 1]
        for leftover in SHARED_MEMORY.glob(f"ViZDoom*{instance}"):
            leftover.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(_watch(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
