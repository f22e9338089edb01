"""Compile, without a card, every kernel launch that the operations make at full width.

    python tests/kernels/triton_kernels/compile_ahead.py

The operations run on bf16 tensors of the widths of Large and of the VAEs, with launches recorded and not
carried out; each distinct one is then compiled for every generation of cards since Ampere.
"""

import sys
from typing import Any

import torch
import triton
from kernel_cases import Inputs, runs
from picture_cases import picture_runs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from sd35.kernels import triton as operations

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
    torch.float8_e4m3fn: "*fp8e4nv",
}
OPTIONS = {"num_warps", "num_stages"}
Launch = tuple[JITFunction, dict[str, Any]]


def main() -> int:
    """Compile all; print what was compiled."""
    assert not triton.knobs.runtime.interpret, "the interpreter compiles nothing: unset TRITON_INTERPRET"
    launches = recorded()
    for architecture in ARCHITECTURES:
        for kernel, arguments in launches:
            compile_for(architecture, kernel, arguments)
        print(f"sm_{architecture}: {len(launches)} launches of {len(kernels(launches))} kernels")
    return 0


def recorded() -> list[Launch]:
    """The distinct launches of all operations: kernels with their arguments by name."""
    launches: dict[str, Launch] = {}

    def record(kernel: JITFunction, *given: Any, grid: object, warmup: bool, **arguments: Any) -> None:
        arguments.update(zip(kernel.arg_names, given, strict=False))
        constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr} | OPTIONS
        typed = {n: value if n in constants else type_of(value) for n, value in arguments.items()}
        launches[f"{kernel.__name__} {sorted(typed.items())}"] = (kernel, typed)

    JITFunction.run = record  # type: ignore[method-assign]
    inputs = Inputs(torch.device("cpu"), torch.bfloat16, tokens=1)
    for _, run in runs(inputs, WIDTH):
        run(operations)
    for channels, groups in PICTURE_CHANNELS:
        for _, run in picture_runs(inputs, channels, groups, PICTURE, batch=1):
            run(operations)
    return list(launches.values())


def kernels(launches: list[Launch]) -> set[str]:
    """Their names."""
    return {kernel.__name__ for kernel, _ in launches}


def compile_for(architecture: int, kernel: JITFunction, arguments: dict[str, Any]) -> None:
    """Compile one launch to machine code; triton's errors pass through."""
    arguments = dict(arguments)
    options = {name: arguments.pop(name) for name in OPTIONS & arguments.keys()}
    constants = {p.name for p in kernel.params if p.is_constexpr}
    values = {name: value for name, value in arguments.items() if name in constants}
    if "NATIVE" in values:
        values["NATIVE"] = architecture >= FIRST_WITH_E4M3
    signature = {p.name: "constexpr" if p.name in constants else arguments[p.name] for p in kernel.params}
    source = ASTSource(kernel, signature, values)
    triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def type_of(value: torch.Tensor | float) -> str:
    """A pointer's or number's type as a signature has it."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


if __name__ == "__main__":
    sys.exit(main())
