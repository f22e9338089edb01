"""A shell in which pages are tried: their commands are the real ones, started without their imports' seconds.

`sd35` and `python` on its path are small programs that pass their arguments, folder, environment and open
files to a server, which has imported everything once and forks for each of them. What runs is `main` of
this tree in a process of its own; a signal to the small program reaches it, and its exit code comes back.

Two things differ from a reader's machine: the demo model recommends 2 steps instead of 28, and numbers of
ports are replaced by one that is free.
"""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

STEPS = 2
PAGE_S = 120
_PORTS = re.compile(r"\b(8000|8765)\b")

# argv[0] of the small program is the command's name. -S and -I: it needs nothing but the standard library.
_SMALL_PROGRAM = """#!{python} -SI
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
asked = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]
socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
process = int(server.recv(20))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(process, number))
sys.exit(int(server.recv(20) or 137))
"""
# A server blocks its shell; a reader opens another one. Each ends when the next begins or the page does.
_PREAMBLE = """set -euo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR
serving=
_stop_serving() {{ if [ -n "$serving" ]; then kill -TERM "$serving"; wait "$serving"; serving=; fi }}
_serve() {{
    _stop_serving
    rm -f serving.log
    sd35 serve "$@" > serving.log 2>&1 & serving=$!
    until grep -qs "serves on" serving.log; do kill -0 "$serving" || {{ cat serving.log >&2; return 1; }}; sleep 0.05; done
}}
{prepare}
source page.sh
_stop_serving
"""  # noqa: E501


@dataclass(frozen=True)
class Rehearsal:
    """Where the small programs are, and what they ask."""

    programs: Path

    def run(
        self, script: str, folder: Path, environment: dict[str, str], prepare: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a page's script in the folder; what it said last is what failed."""
        port = str(_free_port())
        script = re.sub(r"^sd35 serve\b(?!.*&\s*$)", "_serve", script, flags=re.MULTILINE)
        (folder / "page.sh").write_text(_PORTS.sub(port, script), encoding="utf-8")
        (folder / "rehearsal.sh").write_text(_PREAMBLE.format(prepare=prepare), encoding="utf-8")
        path = f"{self.programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "rehearsal.sh"], cwd=folder, stdin=subprocess.DEVNULL, text=True, timeout=PAGE_S,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            env={**environment, "PATH": path, "SD35_SERVE_PORT": port},
        )  # fmt: skip


@contextmanager
def rehearsals(folder: Path, environment: dict[str, str]) -> Iterator[Rehearsal]:
    """The server that forks, until the end of the block."""
    address, programs = str(folder / "socket"), folder / "bin"
    programs.mkdir()
    for name in ("sd35", "python"):
        program = programs / name
        program.write_text(_SMALL_PROGRAM.format(python=sys.executable, address=address), encoding="utf-8")
        program.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address], env=environment)
    try:
        while not Path(address).exists():
            assert server.poll() is None, "the server of rehearsals did not start"
            time.sleep(0.02)
        yield Rehearsal(programs)
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def _serve(address: str) -> None:
    """Import, listen, and fork for each who asks."""
    _import_everything()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address + ".new")
        listening.listen(64)
        os.rename(address + ".new", address)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            asker, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(asker)
            asker.close()


def _answer(asker: socket.socket) -> None:
    """Become the command that was asked for, and tell how it ended."""
    text, files, _, _ = socket.recv_fds(asker, 1 << 20, 3)
    name, arguments, folder, environment = json.loads(text)
    asker.send(str(os.getpid()).encode())
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        code = _sd35(arguments) if name == "sd35" else _python(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.stdout.flush()
        sys.stderr.flush()
        asker.send(str(code).encode())
        os._exit(code)


def _sd35(arguments: list[str]) -> int:
    from sd35.cli.main import main

    sys.argv = ["sd35", *arguments]
    return main(arguments)


def _python(arguments: list[str]) -> int:
    """`python -`, `python -c TEXT`, `python FILE ...`."""
    first, *rest = arguments
    sys.argv = [first, *rest]
    if first == "-":
        exec(compile(sys.stdin.read(), "the page", "exec"), {"__name__": "__main__"})
    elif first == "-c":
        exec(compile(rest[0], "the page", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
    return 0


def _import_everything() -> None:
    import sd35.bench.bench
    import sd35.cli.main
    import sd35.compare.compare
    import sd35.doctor.examine
    import sd35.quantization.ready
    import sd35.quantization.transcode
    import sd35.runtime.pipeline
    import sd35.serving.server
    from sd35.variants import VARIANTS

    sd35.cli.main.build_parser()
    VARIANTS["demo"] = replace(VARIANTS["demo"], num_inference_steps=STEPS)


if __name__ == "__main__":
    _serve(sys.argv[1])
