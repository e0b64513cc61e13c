"""Checkpoints that bring code, which nobody but llama.cpp's converter may run.

Each of their modules writes its name into a file ``RAN`` as it is imported: beside the checkpoint's
other files. `baited` gives a copy of one whose code knows the copy's place.
"""

import base64
import shutil
from itertools import product
from pathlib import Path

from tests.architectures.small import N_TOKENS, SMALL, Config, Small
from tests.architectures.stored_model import Stored

FOLDER = "@FOLDER@"  # stands for the checkpoint's in files that are to be written
RAN = "RAN"

BAIT = f'''from pathlib import Path

with Path("{FOLDER}/{RAN}").open("a") as ran:
    ran.write(__name__.rpartition(".")[2] + "\\n")
'''
CONFIGURATION = f"""{BAIT}
from transformers import Qwen3Config


class CodedConfig(Qwen3Config):
    pass
"""
MODELING = f"""{BAIT}
from transformers import Qwen3ForCausalLM


class CodedForCausalLM(Qwen3ForCausalLM):
    pass
"""
TOKENIZATION = f"""{BAIT}
from transformers import PreTrainedTokenizerFast


class CodedTokenizerFast(PreTrainedTokenizerFast):
    pass
"""
# What a file of ranks needs before the converter can read it.
TOKENIZATION_OF_RANKS = f"""import base64
{BAIT}
from transformers import PreTrainedTokenizer


class QWenTokenizer(PreTrainedTokenizer):
    vocab_files_names = {{"vocab_file": "qwen.tiktoken"}}

    def __init__(self, vocab_file, **settings):
        lines = Path(vocab_file).read_bytes().splitlines()
        pairs = [line.split() for line in lines]
        self.mergeable_ranks = {{base64.b64decode(token): int(rank) for token, rank in pairs}}
        specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        first = len(self.mergeable_ranks)
        self.special_tokens = {{token: first + i for i, token in enumerate(specials)}}
        super().__init__(**settings)

    @property
    def vocab_size(self):
        return len(self.mergeable_ranks) + len(self.special_tokens)

    def get_vocab(self):
        return {{**self.mergeable_ranks, **self.special_tokens}}

    def encode(self, text, **settings):
        return [self.mergeable_ranks[bytes([byte])] for byte in text.encode()]
"""


def ranks() -> str:
    """A vocabulary as tiktoken has it: a line for each token, itself in base64 and its rank."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [f"{a}{b}".encode() for a, b in product(" aeioust", "abcdefghilmnoprstuvwy")]
    tokens += [b"the", b"ing", b"and", b"use"]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    return "\n".join(lines) + "\n"


def qwen_shapes() -> dict[str, tuple[int, ...]]:
    """The first Qwen, which transformers never knew."""
    hidden, wide = 256, 384
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (N_TOKENS, hidden),
        "transformer.wte.weight": (N_TOKENS, hidden),
        "transformer.ln_f.weight": (hidden,),
    }
    for i in range(2):
        at = f"transformer.h.{i}"
        shapes |= {
            f"{at}.ln_1.weight": (hidden,),
            f"{at}.ln_2.weight": (hidden,),
            f"{at}.attn.c_attn.weight": (3 * hidden, hidden),
            f"{at}.attn.c_attn.bias": (3 * hidden,),
            f"{at}.attn.c_proj.weight": (hidden, hidden),
            f"{at}.mlp.w1.weight": (wide, hidden),
            f"{at}.mlp.w2.weight": (wide, hidden),
            f"{at}.mlp.c_proj.weight": (hidden, wide),
        }
    return shapes


FAST: Config = {
    "auto_map": {"AutoTokenizer": [None, "tokenization_coded.CodedTokenizerFast"]},
    "tokenizer_class": "CodedTokenizerFast",
}

CODED: dict[str, Stored] = {
    # All that is wanted of its code lies in tokenizer.json. The converter asks before it runs code.
    "qwen3-coded": Stored(
        SMALL["qwen3"],
        "tokenizers with auto_map beside tokenizer.json",
        files={
            "config.json": {
                "auto_map": {
                    "AutoConfig": "configuration_coded.CodedConfig",
                    "AutoModelForCausalLM": "modeling_coded.CodedForCausalLM",
                }
            },
            "tokenizer_config.json": FAST,
            "configuration_coded.py": CONFIGURATION,
            "modeling_coded.py": MODELING,
            "tokenization_coded.py": TOKENIZATION,
        },
        refused="contains custom code which must be executed",
    ),
    # The same, but here the converter does not ask.
    "nemotron_h-coded": Stored(
        SMALL["nemotron_h"],
        "tokenizers with auto_map beside tokenizer.json",
        files={"tokenizer_config.json": FAST, "tokenization_coded.py": TOKENIZATION},
    ),
    # Published with code that nobody needs any more, and the converter does not run.
    "minimax-m2-coded": Stored(
        SMALL["minimax-m2"],
        "MiniMaxAI/MiniMax-M2",
        files={
            "config.json": {
                "auto_map": {
                    "AutoConfig": "configuration_minimax_m2.MiniMaxM2Config",
                    "AutoModelForCausalLM": "modeling_minimax_m2.MiniMaxM2ForCausalLM",
                }
            },
            "configuration_minimax_m2.py": CONFIGURATION.replace("CodedConfig", "MiniMaxM2Config"),
            "modeling_minimax_m2.py": MODELING.replace("CodedFor", "MiniMaxM2For"),
        },
    ),
    # Its vocabulary lies in a file that only its code reads.
    "qwen-coded": Stored(
        Small(
            "qwen",
            "QWenLMHeadModel",
            {
                "auto_map": {
                    "AutoConfig": "configuration_qwen.QWenConfig",
                    "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
                },
                "hidden_size": 256,
                "intermediate_size": 768,
                "layer_norm_epsilon": 1e-6,
                "max_position_embeddings": 512,
                "model_type": "qwen",
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "rotary_emb_base": 10000,
                "seq_length": 512,
                "tie_word_embeddings": False,
                "torch_dtype": "bfloat16",
                "vocab_size": N_TOKENS,
            },
            shapes=qwen_shapes(),
        ),
        "Qwen/Qwen-7B",
        files={
            "configuration_qwen.py": CONFIGURATION.replace("CodedConfig", "QWenConfig"),
            "modeling_qwen.py": MODELING.replace("CodedForCausalLM", "QWenLMHeadModel"),
            "qwen.tiktoken": ranks(),
            "tokenization_qwen.py": TOKENIZATION_OF_RANKS,
            "tokenizer_config.json": {
                "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
                "tokenizer_class": "QWenTokenizer",
            },
        },
        removed=("tokenizer.json",),
    ),
}


def baited(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint of `CODED` to a folder whose file ``RAN`` says what of its code ran."""
    shutil.copytree(checkpoint, folder)
    (folder / RAN).unlink(missing_ok=True)
    for file in folder.glob("*.py"):
        file.write_text(file.read_text().replace(str(checkpoint), str(folder)))
    return folder
