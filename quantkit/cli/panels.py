"""The panels that help sorts options into, in the order in which it shows them."""

COMMON = "Common"  # of options that name no panel
MACHINE = "Machine"
RUN = "Run"
BUDGET = "Budget"
QUALITY = "Quality"
CALIBRATION = "Calibration"
TEXT = "Text"
CHECKS = "Checks"
PICTURES = "Pictures"
GPTQ = "GPTQ"
BNB = "bitsandbytes"
SOURCE = "Source"
HUB = "Hub"
CLUSTER = "Cluster"

ORDER = (
    *(COMMON, MACHINE, RUN, BUDGET, QUALITY, CALIBRATION, TEXT, CHECKS, PICTURES),
    *(GPTQ, BNB, SOURCE, HUB, CLUSTER),
)
