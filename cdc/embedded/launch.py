"""Become what a server should run as, then become the server: `python -I -S launch.py PARENT IDENTITY SIGNAL ARGV...`.

Run as a program, never imported: each step changes the process for good, and together they need an order.

1. Give up root, which Postgres refuses: `userns` maps root to nobody inside a user namespace (files stay reachable),
   `nobody` really becomes that user, `same` keeps an ordinary one.
2. Ask the kernel for SIGNAL when the parent dies. After 1, because a change of credentials forgets the request.
3. Look whether the parent died before 2, when the kernel had nobody to tell.
4. exec, which keeps all of this.
"""

import ctypes
import os
import sys

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_NOBODY = 65534


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _enter_user_namespace(libc: ctypes.CDLL) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _check(libc.unshare(_CLONE_NEWUSER))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_NOBODY} {uid} 1")
    _write("/proc/self/gid_map", f"{_NOBODY} {gid} 1")


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def main() -> None:
    parent, identity, death_signal, argv = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    libc = ctypes.CDLL(None, use_errno=True)
    if identity == "userns":
        _enter_user_namespace(libc)
    elif identity == "nobody":
        _become_nobody()
    _check(libc.prctl(_PR_SET_PDEATHSIG, death_signal))
    if os.getppid() != parent:
        sys.exit("the parent died before its server could start")
    os.execv(argv[0], argv)  # noqa: S606 - a shell would be one more process between the server and its parent


if __name__ == "__main__":
    main()
