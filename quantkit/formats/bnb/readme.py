"""How to load an artifact, in the folder itself."""

from quantkit.core.packages import DISTRIBUTION
from quantkit.families.model import Decoder, Model
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.planning.quants import Quant

_KINDS = {
    "bnb-nf4": "4-bit NormalFloat (nf4)",
    "bnb-fp4": "4-bit floats (fp4)",
    "bnb-int8": "8-bit integers (LLM.int8)",
}
_DENSE = """With any version of transformers that bitsandbytes supports:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", device_map="auto", dtype="auto")
```
"""
_MOE = """transformers 5 keeps the experts of a layer in one fused parameter, which its bitsandbytes
integration does not quantize. There, load with quantkit (`pip install '{distribution}[bnb]'`):

```python
from quantkit.formats.bnb import load

model = load("{name}", device_map="auto")
```
"""
_MIXTRAL = """
transformers 4 has a module for each expert; there, with bitsandbytes and accelerate, this works:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", device_map="auto", dtype="auto")
```

The same line raises an error in transformers 5.
"""


def write_readme(name: str, model: Model, quant: Quant, options: BnbOptions) -> str:
    """The text of an artifact's README.md."""
    how = _MOE if model.facts.n_experts else _DENSE
    if model.facts.n_experts and isinstance(model, Decoder):
        how += _MIXTRAL
    experts = ", the experts included" if model.facts.n_experts else ""
    kept = ["the embeddings", "the norms", "lm_head"]
    kept += ["the router gates"] if experts else []
    kept += [f"`{module}`" for module in options.keep if module != "lm_head"]
    blocks = ""
    if quant.name != "bnb-int8":
        nested = ", whose scales are quantized to 8 bits too" if options.double_quant else ""
        blocks = f" in blocks of {options.block_size}{nested}"
    return (
        f"# {name}\n\nMade by quantkit with bitsandbytes. Linear layers are stored as "
        f"{_KINDS[quant.name]}{blocks}{experts}. Not quantized: {', '.join(kept)}.\n\n"
        f"## Loading\n\n{how.format(name=name, distribution=DISTRIBUTION)}"
    )
