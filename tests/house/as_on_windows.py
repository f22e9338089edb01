"""`sd35`, shown what Python shows it on Windows: `python as_on_windows.py '[["verify", "demo"], ...]'`.

The commands run one after the other in this process, until one fails. Modules of sd35 alone are shown it:
`sys.platform` says win32, modules and names that Windows lacks are gone, and `subprocess` refuses what it
refuses there. Libraries go on with the machine that they are on. What Windows forbids is forbidden to all: no
file is renamed, replaced or removed while this process has it open or mapped. Text read or written without a
word on its encoding is an error of ours.

The names are those that CPython 3.13 for Linux has and CPython 3.13 for Windows has not.
"""

import builtins
import json
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

OURS = str(Path(__file__).parents[2] / "src" / "sd35")
NO_MODULES = {
    "fcntl",
    "resource",
    "pwd",
    "grp",
    "termios",
    "tty",
    "pty",
    "posix",
    "syslog",
    "readline",
    "curses",
}
NO_NAMES = {
    "os": """
    MFD_ALLOW_SEALING MFD_CLOEXEC NGROUPS_MAX O_ACCMODE O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC
    O_FSYNC O_LARGEFILE O_NDELAY O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK O_PATH O_RSYNC O_SYNC
    O_TMPFILE SEEK_DATA SEEK_HOLE WCONTINUED WCOREDUMP WEXITED WEXITSTATUS WIFCONTINUED WIFEXITED
    WIFSIGNALED WIFSTOPPED WNOHANG WNOWAIT WSTOPPED WSTOPSIG WTERMSIG WUNTRACED chown chroot confstr
    confstr_names copy_file_range ctermid environb eventfd eventfd_read eventfd_write fchdir fchmod
    fchown fdatasync fork forkpty fpathconf fstatvfs fwalk getegid getenvb geteuid getgid getgrouplist
    getgroups getloadavg getpgid getpgrp getpriority getrandom getresgid getresuid getsid getuid
    getxattr initgroups killpg lchmod lchown listxattr lockf login_tty major makedev memfd_create minor
    mkfifo mknod nice openpty pathconf pathconf_names pidfd_open pipe2 posix_fadvise posix_fallocate
    posix_spawn posix_spawnp pread preadv pwrite pwritev readv register_at_fork removexattr
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getparam sched_getscheduler
    sched_param sched_rr_get_interval sched_setaffinity sched_setparam sched_setscheduler sched_yield
    sendfile setegid seteuid setgid setgroups setpgid setpgrp setpriority setregid setresgid setresuid
    setreuid setsid setuid setxattr spawnlp spawnlpe spawnvp spawnvpe splice statvfs sync sysconf
    sysconf_names tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid waitid_result writev
    """,
    "signal": """
    ITIMER_PROF ITIMER_REAL ITIMER_VIRTUAL ItimerError SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGHUP
    SIGIO SIGIOT SIGKILL SIGPIPE SIGPOLL SIGPROF SIGPWR SIGQUIT SIGRTMAX SIGRTMIN SIGSTKFLT SIGSTOP
    SIGSYS SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ
    SIG_BLOCK SIG_SETMASK SIG_UNBLOCK Sigmasks alarm getitimer pause pidfd_send_signal pthread_kill
    pthread_sigmask setitimer siginterrupt sigpending sigtimedwait sigwait sigwaitinfo struct_siginfo
    """,
    "mmap": """
    MADV_DODUMP MADV_DOFORK MADV_DONTDUMP MADV_DONTFORK MADV_DONTNEED MADV_FREE MADV_HUGEPAGE
    MADV_HWPOISON MADV_MERGEABLE MADV_NOHUGEPAGE MADV_NORMAL MADV_RANDOM MADV_REMOVE MADV_SEQUENTIAL
    MADV_UNMERGEABLE MADV_WILLNEED MAP_ANON MAP_ANONYMOUS MAP_DENYWRITE MAP_EXECUTABLE MAP_POPULATE
    MAP_PRIVATE MAP_SHARED MAP_STACK PROT_EXEC PROT_READ PROT_WRITE
    """,
    "time": """
    CLOCK_BOOTTIME CLOCK_MONOTONIC CLOCK_MONOTONIC_RAW CLOCK_PROCESS_CPUTIME_ID CLOCK_REALTIME CLOCK_TAI
    CLOCK_THREAD_CPUTIME_ID clock_getres clock_gettime clock_gettime_ns clock_settime clock_settime_ns
    pthread_getcpuclockid tzset
    """,
}  # fmt: skip


class Shown(ModuleType):
    """A module without some names, and with others changed."""

    def __init__(self, real: ModuleType, without: str = "", **changed: object) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(changed, _real=real, _without=frozenset(without.split()))

    def __getattr__(self, name: str) -> Any:
        if name in self._without:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self._real, name)


def shown() -> dict[str, Any]:
    """The modules that sd35 gets in place of this machine's."""
    found: dict[str, Any] = {name: Shown(__import__(name), names) for name, names in NO_NAMES.items()}
    found["sys"] = Shown(sys, platform="win32")
    found["colorama"] = SimpleNamespace(just_fix_windows_console=lambda: None)
    memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=1 << 30))
    if "-S" not in sys.orig_argv:
        found["psutil"] = Shown(__import__("psutil"), Process=lambda: memory)
    return found


def show() -> None:
    """From here on every import in sd35's own files goes through us."""
    real, changed = builtins.__import__, shown()

    def from_windows(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        if level == 0 and globals is not None and str(globals.get("__file__")).startswith(OURS):
            if name.partition(".")[0] in NO_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
            if name in changed:
                return changed[name]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = from_windows


def hold_open_files() -> None:
    """Windows renames, replaces and removes nothing that is open."""
    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        setattr(os, name, _careful(getattr(os, name)))


def _careful(act: Callable[..., None]) -> Callable[..., None]:
    def careful(*paths: Any, dir_fd: int | None = None, **others: Any) -> None:
        for path in paths:
            folder = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            _refuse_open(os.path.join(folder, os.fspath(path)))
        act(*paths, **others) if dir_fd is None else act(*paths, dir_fd=dir_fd, **others)

    return careful


def _refuse_open(path: str) -> None:
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    for held in _open_files():
        if held == real or held.startswith(f"{real}/"):
            raise PermissionError(13, f"Windows would say that {held} is in use", path)


def _open_files() -> set[str]:
    table = Path("/proc/self/maps").read_bytes().decode().splitlines()
    held = {line.split(maxsplit=5)[5] for line in table if "/" in line}
    for number in os.listdir("/proc/self/fd"):
        try:
            place = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the list's own
            continue
        if os.path.isfile(place):
            held.add(place)
    return held


def start_children_alike() -> None:
    """A script that is run in isolation is run through us; what Windows can't do is refused."""
    begin = subprocess.Popen.__init__

    def start(self: Any, args: Any, *more: Any, **options: Any) -> None:
        if options.get("preexec_fn") or options.get("pass_fds"):
            raise ValueError("preexec_fn and pass_fds are not supported on Windows")
        if isinstance(args, list) and args[:3] == [sys.executable, "-I", "-S"]:
            args = [*args[:3], __file__, *args[3:]]
        begin(self, args, *more, **options)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]


def main() -> None:
    """A script with its arguments, or several command lines of sd35."""
    show()
    if sys.argv[1].endswith(".py"):
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    hold_open_files()
    start_children_alike()
    from sd35.cli.main import entry

    for words in json.loads(sys.argv[1]):
        sys.argv = ["sd35", *words]
        warnings.simplefilter("ignore", EncodingWarning)
        warnings.filterwarnings("error", category=EncodingWarning, module="sd35")
        try:
            entry()
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    main()
