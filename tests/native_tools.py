"""The real llama.cpp tools that ``make vendor`` builds, one function for each.

For tests marked ``native`` and for benchmarks. Every tool runs in a subprocess with a time limit,
on the CPU only, and fails loudly: ToolError carries the last lines that it printed.
"""

import atexit
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

BUILD = Path(__file__).resolve().parents[1] / "vendor" / "build"
BIN = BUILD / "bin"
PYTHON = BUILD / "venv" / "bin" / "python"
TRANSFORMERS4 = BUILD / "transformers4"
CONVERTER = BUILD / "llama.cpp" / "convert_hf_to_gguf.py"

# What publishers call these mixtures where output and embeddings are in Q8_0.
VARIANTS = {
    "q6_k_l": "q6_k",
    "q5_k_l": "q5_k_m",
    "q4_k_l": "q4_k_m",
    "q3_k_xl": "q3_k_l",
    "q2_k_l": "q2_k",
}
ENDS_IN_8_BITS = ("--output-tensor-type", "q8_0", "--token-embedding-type", "q8_0")

TIME_LIMIT_SECONDS = 3600
OUTPUT_TAIL_LINES = 20

# llama.cpp's tools log in a thread that they do not wait for at their end (common/log.cpp), so on a
# busy machine the last lines are lost. With this library such a process ends when all of its other
# threads sleep: then that one has nothing left to print.
_LINGER = """
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int others_sleep(void) {
    int sleep = 1;
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *entry;
    while (tasks && (entry = readdir(tasks))) {
        char path[300], line[600] = "";
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == gettid()) continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/stat", entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (!fgets(line, sizeof line, file)) line[0] = 0;
        fclose(file);
        char *state = strrchr(line, ')');
        if (state && state[2] != 'S') sleep = 0;
    }
    if (tasks) closedir(tasks);
    return sleep;
}

__attribute__((destructor)) static void linger(void) {
    for (int seen = 0; seen < 3; seen = others_sleep() ? seen + 1 : 0)
        usleep(1000);  // # time: between two looks, of which there are as many as it takes
}
"""


class ToolsMissingError(RuntimeError):
    """The tools have not been built."""


class ToolError(RuntimeError):
    """A tool failed, ran too long, or left no result."""


def convert(checkpoint: Path, out: Path, outtype: str) -> None:
    """Convert a Hugging Face folder to a GGUF of ``outtype`` (f32, f16, bf16, q8_0)."""
    run([PYTHON, CONVERTER, checkpoint, "--outfile", out, "--outtype", outtype], makes=out)


def quantize(
    src: Path,
    dst: Path,
    quant: str,
    *,
    imatrix: Path | None = None,
    tensor_types: Sequence[str] = (),
    requantize: bool = False,
    threads: int = 2,
) -> None:
    """Quantize a GGUF; each of ``tensor_types`` is a ``pattern=type``.

    A quant may be one of `VARIANTS`.
    One that is quantized already is refused unless ``requantize`` is set.
    The path of ``imatrix`` becomes metadata of ``dst`` just as it is given here.
    """
    options: list[str | Path] = [] if imatrix is None else ["--imatrix", imatrix]
    for tensor_type in tensor_types:
        options += ["--tensor-type", tensor_type]
    if requantize:
        options.append("--allow-requantize")
    if quant in VARIANTS:
        options += ENDS_IN_8_BITS
    mixture = VARIANTS.get(quant, quant)
    run([tool("llama-quantize"), *options, src, dst, mixture, str(threads)], makes=dst)


def imatrix(
    model: Path,
    text: Path,
    out: Path,
    *,
    fmt: Literal["gguf", "dat"],
    chunks: int,
    context: int = 512,
    threads: int = 2,
    exact_cache: bool = False,
    libraries: Path | None = None,
) -> None:
    """Compute an importance matrix over ``chunks`` windows of ``context`` tokens of a text file.

    With ``exact_cache`` attention is computed in float32, not with keys and values in float16.
    ``libraries`` are those of `run`.
    """
    options = ["--output-format", fmt, "--chunks", str(chunks), *evaluation(context, threads)]
    if exact_cache:
        options += ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    command: list[str | Path] = [
        tool("llama-imatrix"),
        "-m",
        model,
        "-f",
        text,
        "-o",
        out,
        *options,
    ]
    run(command, makes=out, libraries=libraries)


def split(src: Path, out_prefix: Path, max_size: str) -> list[Path]:
    """Split a GGUF into files of at most ``max_size`` ("300M", "2G"; decimal), named by prefix.

    Returns the files in their order.
    """
    shards = f"{out_prefix.name}-?????-of-?????.gguf"
    for old in out_prefix.parent.glob(shards):
        old.unlink()
    output = run([tool("llama-gguf-split"), "--split-max-size", max_size, src, out_prefix])
    made = sorted(out_prefix.parent.glob(shards))
    if not made:
        raise ToolError(f"llama-gguf-split left no {shards}; it printed\n{tail(output)}")
    return made


def perplexity(model: Path, text: Path, *, context: int = 512, threads: int = 2) -> float:
    """Return the perplexity of a text file of at least two windows of ``context`` tokens."""
    options = evaluation(context, threads)
    output = run([tool("llama-perplexity"), "-m", model, "-f", text, *options], linger=True)
    estimate = re.search(r"Final estimate: PPL = (\S+)", output)
    if estimate is None:
        raise ToolError(f"llama-perplexity gave no estimate; it printed\n{tail(output)}")
    return float(estimate[1])


def join_imatrices(files: Sequence[Path], out: Path, context: int) -> None:
    """Add up importance matrices of chunks of ``context`` tokens."""
    options: list[str | Path] = []
    for file in files:
        options += ["--in-file", file]
    # It asks for a model, which it then does not open.
    options += ["--model", files[0], "-o", out, "--ctx-size", str(context)]
    run([tool("llama-imatrix"), *options, "--output-format", "gguf"], makes=out)


def evaluation(context: int, threads: int) -> list[str]:
    """Options of the tools that run a model: on the CPU, with exactly this context."""
    return ["--ctx-size", str(context), "--threads", str(threads), "--n-gpu-layers", "0"]


def tool(name: str) -> Path:
    return BIN / name


def run(
    command: Sequence[str | Path],
    *,
    makes: Path | None = None,
    libraries: Path | None = None,
    linger: bool = False,
) -> str:
    """Run a tool and return all that it printed; raise ToolError if it fails or leaves no file.

    ``libraries`` is a folder with other builds of libllama and ggml, which the tool is to use.
    One that is to ``linger`` prints all that it has logged.
    """
    program = Path(command[1] if command[0] == PYTHON else command[0])
    # The stamp is the last thing that a build leaves.
    for needed in (BUILD / "stamp", Path(command[0]), program):
        if not needed.exists():
            raise ToolsMissingError(f"{needed} is not there: run `make vendor` to build the tools.")
    # No setting of the user's may change a result: the converter imports the gguf beside it, the
    # tools take no defaults from variables, and nothing comes from the network.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LLAMA_", "GGML_", "PYTHON", "NO_LOCAL_GGUF"))
    } | {"HF_HUB_OFFLINE": "1"}
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    if linger:
        environment["LD_PRELOAD"] = str(_linger())
    if makes is not None:
        makes.unlink(missing_ok=True)  # a result left from before must not pass for a new one
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            timeout=TIME_LIMIT_SECONDS,  # time: one that hangs ends the benchmarks, too
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{program.name} ran for over {TIME_LIMIT_SECONDS} s.") from error
    if done.returncode != 0:
        call = shlex.join(map(str, command))
        raise ToolError(f"status {done.returncode} from {call}; it printed\n{tail(done.stdout)}")
    if makes is not None and not makes.exists():
        raise ToolError(f"{program.name} left no {makes}; it printed\n{tail(done.stdout)}")
    return done.stdout


@cache
def _linger() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="linger"))
    atexit.register(shutil.rmtree, folder)
    library = folder / "linger.so"
    compile_ = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(compile_, input=_LINGER, text=True, check=True)
    return library


def tail(output: str) -> str:
    return "\n".join(output.splitlines()[-OUTPUT_TAIL_LINES:])
