"""Two commands or more for each command's help. tests/cli/test_help.py checks that they parse.

They fit 60 columns, so that they can be copied from any terminal.
"""

from collections.abc import Mapping

# By command, the empty name for `quantkit` itself: what it is for, and what is typed.
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("Which quant runs on this machine?", "quantkit fit mixtral-8x7b"),
        ("Build three quants in one pass", "quantkit build MODEL -q q8_0,q5_k_m,q4_k_m"),
        ("Complete quants and options with TAB", "quantkit --install-completion"),
    ),
    "fit": (
        ("A bundled model on this machine", "quantkit fit mixtral-8x22b"),
        ("A checkpoint on another one", "quantkit fit MODEL --gpu 24GB --ram 64GB"),
        ("The machines known by name", "quantkit fit --hardware"),
    ),
    "build": (
        ("Three quants in one pass", "quantkit build MODEL -q q8_0,q5_k_m,q4_k_m"),
        ("With an importance matrix", "quantkit build MODEL -q iq3_xxs --imatrix auto"),
        ("The best file of 20 GB", "quantkit build MODEL --budget 20GB"),
        ("Sizes to the byte, nothing written", "quantkit build MODEL -q all --dry-run"),
        ("From the Hub to the Hub", "quantkit build ME/MODEL -q publish --publish ME/GGUF"),
    ),
    "recipe": (
        ("The best types for 20 GB", "quantkit recipe MODEL --budget 20GB -o my.toml"),
        ("For a machine's memory", "quantkit recipe mixtral-8x7b --for '24GB + 64GB'"),
    ),
    "calibrate": (
        ("On the text that is built in", "quantkit calibrate MODEL -o imatrix.gguf"),
        ("On your own, and conversations", "quantkit calibrate MODEL -t a.txt --chat b.jsonl"),
        ("A model that exists as GGUF alone", "quantkit calibrate bf16.gguf --gpu-layers 99"),
    ),
    "measure": (
        ("Losses for a better search", "quantkit measure MODEL -o losses.json"),
        ("On your own text", "quantkit measure MODEL -t text.txt -o losses.json"),
    ),
    "export": (
        ("A folder of GPTQ as a GGUF", "quantkit export MODEL-quants/MODEL-gptq-int4"),
        ("As small as it gets", "quantkit export bnb-nf4 --to q8_0 -o out"),
    ),
    "import": (
        ("Raw Mistral weights for transformers", "quantkit import RAW_FOLDER -o MODEL"),
        ("In files of 10 GB", "quantkit import RAW_FOLDER -o MODEL --shard-size 10GB"),
    ),
    "densify": (
        ("One expert alone", "quantkit densify MIXTRAL --expert 0 -o dense"),
        ("Fitted to all experts on a text", "quantkit densify MIXTRAL --merge fit -o dense"),
    ),
    "quants": (
        ("The table", "quantkit quants"),
        ("For a script", "quantkit quants --json"),
    ),
    "inspect": (
        ("A file", "quantkit inspect model-Q4_K_M.gguf"),
        ("A file on the Hub, by its header", "quantkit inspect NAME/REPO/FILE.gguf"),
    ),
    "smoke": (
        ("Does it run?", "quantkit smoke model-Q4_K_M.gguf"),
        ("Does it compute what the model does?", "quantkit smoke FILE.gguf --checkpoint MODEL"),
    ),
    "compare": (
        ("Everything that a build wrote", "quantkit compare MODEL-GGUF"),
        ("Figures and pictures in one page", "quantkit compare MODEL-GGUF --html page.html"),
    ),
    "publish": (
        ("What would go where", "quantkit publish OUT --repo ME/MODEL-GGUF --dry-run"),
        ("Publish it", "quantkit publish OUT --repo ME/MODEL-GGUF"),
    ),
    "verify": (
        ("A build or a download", "quantkit verify MODEL-GGUF"),
        ("A repository, and who signed it", "quantkit verify ME/MODEL-GGUF --key PUBLIC.pem"),
    ),
    "perplexity": (
        ("A checkpoint in a layer's memory", "quantkit perplexity MODEL --chunks 20"),
        ("Checkpoint and GGUF side by side", "quantkit perplexity MODEL model-Q8_0.gguf"),
    ),
    "doctor": (
        ("What this machine has and lacks", "quantkit doctor"),
        ("Before work without network", "quantkit doctor --fetch-converter"),
    ),
}
