"""Changes this process's user, then becomes the server: `python -I -S launch.py PARENT IDENTITY SIGNAL ARGV...`.

It is run as a program and never imported: each step changes the process for good. The order matters.

1. Give up root, which Postgres refuses: `userns` maps root to the user nobody inside a user namespace, `nobody` really
   becomes that user, `same` keeps an ordinary one. Files stay within reach, wherever the programs and the data lie: in
   the namespace they are our own, and as the user nobody we keep root's passage through directories.
2. Ask the kernel for SIGNAL when the parent dies. After 1, because a change of credentials cancels the request.
3. Check whether the parent died before 2, when the request did not exist yet.
4. exec, which keeps all of this.
"""

import ctypes
import os
import sys

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
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


def _become_nobody(libc: ctypes.CDLL) -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _keep_passage(libc)


def _keep_passage(libc: ctypes.CDLL) -> None:
    """Keep only CAP_DAC_OVERRIDE of root's capabilities, through exec too; do without it where root itself lacks it."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    wanted = 1 << _CAP_DAC_OVERRIDE
    # capset(2): effective, permitted and inheritable, for the capabilities 0 to 31 and then for 32 to 63.
    data = (ctypes.c_uint32 * 6)(wanted, wanted, wanted, 0, 0, 0)
    if libc.capset(header, data) == 0:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def main() -> None:
    parent, identity, death_signal, argv = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    libc = ctypes.CDLL(None, use_errno=True)
    if identity == "userns":
        _enter_user_namespace(libc)
    elif identity == "nobody":
        _become_nobody(libc)
    _check(libc.prctl(_PR_SET_PDEATHSIG, death_signal))
    if os.getppid() != parent:
        sys.exit("the parent died before its server could start")
    os.execv(argv[0], argv)  # noqa: S606 - a shell would be one more process between the server and its parent


if __name__ == "__main__":
    main()
