"""llama.cpp's converter, many checkpoints in one process: ``PYTHON converter.py CONVERTER JOBS``.

Runs in the converter's own environment, so it imports nothing of ours. ``JOBS`` is a JSON list of
[checkpoint, GGUF, options]. What failed says so in a file beside the GGUF.
"""

import json
import os
import runpy
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


def main() -> None:
    converter, jobs = sys.argv[1:]
    # Where transformers puts code that comes with a checkpoint: not into the user's folder.
    os.environ["HF_MODULES_CACHE"] = jobs + ".modules"
    sys.path.insert(0, str(Path(converter).parent))
    import_module("torch").set_num_threads(1)  # a mean is summed in another order by two
    recognize_every_tokenizer()
    read_sentencepiece_models()
    for folder, out, options in json.loads(Path(jobs).read_text()):
        forget_options()
        sys.argv = [converter, folder, "--outfile", out, *options]
        try:
            runpy.run_path(converter, run_name="__main__")
        except (Exception, SystemExit):  # noqa: BLE001 - told to the test that needs it
            Path(out).unlink(missing_ok=True)
            Path(out + ".failed").write_text(traceback.format_exc())
    Path(jobs + ".done").touch()


def forget_options() -> None:
    """Take back ``--no-mtp`` and ``--mtp``, which the converter keeps in a model's class."""
    for classes in import_module("conversion.base").ModelBase._model_classes.values():
        for model in classes.values():
            for option in ("no_mtp", "mtp_only"):
                if vars(model).get(option):
                    delattr(model, option)


def recognize_every_tokenizer() -> None:
    """Let tokenizers that were trained a minute ago pass for GPT-2's.

    The converter knows published ones by a hash of what they make of a text, and stops at others.
    """
    model = import_module("conversion.base").TextModel
    known = model.get_vocab_base_pre

    def any_pre(self: Any, tokenizer: Any) -> Any:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return "gpt-2"

    model.get_vocab_base_pre = any_pre
    # This one reads ranks out of a tokenizer that comes as code with its checkpoint.
    import_module("conversion.hunyuan").HunYuanMoEModel.set_vocab = model._set_vocab_gpt2


def read_sentencepiece_models() -> None:
    """Let the converter read T5's vocabulary with the protobuf that is pinned beside it.

    What sentencepiece carries for that asks protobuf for its version, and this one is older than
    that question; the messages are the same.
    """
    name = "google.protobuf.runtime_version"
    try:
        import_module(name)
    except ImportError:
        module: Any = ModuleType(name)
        module.Domain = SimpleNamespace(PUBLIC=0)
        module.ValidateProtobufRuntimeVersion = lambda *_: None
        protobuf: Any = import_module("google.protobuf")
        sys.modules[name] = protobuf.runtime_version = module


if __name__ == "__main__":
    main()
