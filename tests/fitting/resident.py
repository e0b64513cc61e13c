"""Run a model in llama.cpp on the CPU and tell what it took: ``python -m tests.fitting.resident``.

It loads, reads a batch and generates a token, and prints its peak resident memory: that of this
process image alone, which the kernel keeps as VmHWM. It imports all of llama-cpp-python, as those
do who run models with it.
"""

import ctypes
import json
import re
import sys
from pathlib import Path

import llama_cpp.llama_cpp as llama


def main(file: str, n_ctx: int, kv_type: int, n_tokens: int) -> None:
    llama.llama_backend_init()
    lines: list[str] = []
    keep = llama.llama_log_callback(lambda _level, text, _data: lines.append(text.decode()))
    llama.llama_log_set(keep, None)
    params = llama.llama_model_default_params()
    params.load_mode = llama.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = False
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(file.encode(), params)
    assert model, lines
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = n_ctx, 2048, 512
    settings.type_k = settings.type_v = kv_type
    settings.swa_full = False
    settings.n_threads = settings.n_threads_batch = 2
    context = llama.llama_init_from_model(model, settings)
    assert context, lines
    for count in (n_tokens, 1):
        tokens = (ctypes.c_int32 * count)(*[3 + i % 50 for i in range(count)])
        assert llama.llama_decode(context, llama.llama_batch_get_one(tokens, count)) == 0
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    logged = [line.strip() for line in lines if "buffer size" in line]
    sys.stdout.write(json.dumps({"peak": int(peak) * 1024, "logged": logged}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
