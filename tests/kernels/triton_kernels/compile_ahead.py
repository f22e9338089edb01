"""Compile, without a card, every kernel launch that the operations make at full width.

    python tests/kernels/triton_kernels/compile_ahead.py

The operations run on bf16 tensors of the widths of Large and of the VAEs, with launches recorded and not
carried out; each distinct one is then compiled for every generation of cards since Ampere. The attention of
tiles is Hopper's alone: it must keep its products asynchronous there, which the assembler gives up silently.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_cases import Inputs, runs
from picture_cases import picture_runs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import JITFunction

from sd35.kernels import triton as operations
from sd35.kernels.operands import TiledHeads
from sd35.kernels.triton import attend

# sm_86 (GeForce 30) and sm_120 (GeForce 50) have less shared memory than their data-centre sisters.
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
FIRST_WITH_E4M3 = 89
WIDTH = 2432
PICTURE_CHANNELS = ((96, 16), (512, 32))  # the ragged and the widest
PICTURE = (192, 192)  # large enough that a program has several tiles to add up
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.float8_e4m3fn: "*fp8e4nv",
}
OPTIONS = {"num_warps", "num_stages"}
Launch = tuple[JITFunction, dict[str, Any]]


def main() -> int:
    """Compile all; print what was compiled."""
    assert not triton.knobs.runtime.interpret, "the interpreter compiles nothing: unset TRITON_INTERPRET"
    launches = recorded(all_operations)
    for architecture in ARCHITECTURES:
        for kernel, arguments in launches:
            compile_for(architecture, kernel, arguments)
        print(f"sm_{architecture}: {len(launches)} launches of {len(kernels(launches))} kernels")
    for kernel, arguments in recorded(tiles_attention):
        print(f"sm_90: attention of tiles, {products_in_flight(compile_for(90, kernel, arguments))}")
    return 0


def recorded(run: Callable[[], None]) -> list[Launch]:
    """The distinct launches that `run` makes: kernels with their arguments by name."""
    launches: dict[str, Launch] = {}

    def record(kernel: JITFunction, *given: Any, grid: object, warmup: bool, **arguments: Any) -> None:
        arguments.update(zip(kernel.arg_names, given, strict=False))
        constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr} | OPTIONS
        typed = {n: value if n in constants else type_of(value) for n, value in arguments.items()}
        launches[f"{kernel.__name__} {sorted(typed.items())}"] = (kernel, typed)

    JITFunction.run = record  # type: ignore[method-assign]
    run()
    return list(launches.values())


def all_operations() -> None:
    """Every operation, in every form and kind of input."""
    inputs = Inputs(torch.device("cpu"), torch.bfloat16, tokens=1)
    for _, run in runs(inputs, WIDTH):
        run(operations)
    for channels, groups in PICTURE_CHANNELS:
        for _, run in picture_runs(inputs, channels, groups, PICTURE, batch=1):
            run(operations)


def tiles_attention() -> None:
    """Over an odd number of tiles of keys and an even one."""
    attend.multiprocessors = lambda device: 132
    for tokens in (4429, 4096):
        attend.attend_tiles(TiledHeads.empty(1, tokens, 1, 64, torch.device("cpu")))


def products_in_flight(binary: Any) -> str:
    """That no wait stands between the products of one group; else what the assembler made of them."""
    listing = nvdisasm(binary.asm["cubin"])
    products, waits = listing.count("QGMMA"), listing.count("WARPGROUP.DEPBAR")
    return "products in flight" if waits < products / 2 else f"{waits} waits for {products} products"


def nvdisasm(cubin: bytes) -> str:
    """The machine code as text."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, file.name], capture_output=True, text=True, check=True).stdout


def kernels(launches: list[Launch]) -> set[str]:
    """Their names."""
    return {kernel.__name__ for kernel, _ in launches}


def compile_for(architecture: int, kernel: JITFunction, arguments: dict[str, Any]) -> Any:
    """One launch compiled to machine code; triton's errors pass through."""
    arguments = dict(arguments)
    options = {name: arguments.pop(name) for name in OPTIONS & arguments.keys()}
    constants = {p.name for p in kernel.params if p.is_constexpr}
    values = {name: value for name, value in arguments.items() if name in constants}
    if "NATIVE" in values:
        values["NATIVE"] = architecture >= FIRST_WITH_E4M3
    signature = {p.name: "constexpr" if p.name in constants else arguments[p.name] for p in kernel.params}
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(kernel, signature, values)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def type_of(value: torch.Tensor | TensorDescriptor | float) -> str:
    """A pointer's, matrix's or number's type as a signature has it."""
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype][1:]}{value.block_shape},{value.layout!r}>"
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


if __name__ == "__main__":
    sys.exit(main())
