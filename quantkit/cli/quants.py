"""``quantkit quants``: the table of quants."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from quantkit.cli.output import JsonOption, console, emit_json, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantkit.families.model import Decoder
    from quantkit.planning.quants import Quant

_MODELS = ("mistral-7b", "mixtral-8x22b")


def quants(as_json: JsonOption = False) -> None:
    """List the quants: bits per weight and size on real models, and what each is good for.

    The figures are planned from the models' shapes, tensor by tensor.
    """
    from quantkit.core.profiles import load_profile
    from quantkit.families import describe
    from quantkit.planning.quants import (
        SOURCE,
        all_quants,
        folder_quants,
        known_groups,
        known_quants,
    )

    models = {}
    for name in _MODELS:
        profile = load_profile(f"models/{name}.toml")
        models[profile["title"]] = describe(profile["config"])
    rows = [_row(quant, models) for quant in all_quants().values()]
    rows += [_folder_row(quant, models) for quant in folder_quants().values()]
    if as_json:
        emit_json({"quants": rows})
        return
    title = list(models)[-1]
    table = Table(
        caption=f"Bits per weight and size: {title}, tensors only", caption_justify="left"
    )
    table.add_column("quant", no_wrap=True)
    table.add_column("format")
    table.add_column("bits", justify="right")
    table.add_column("GB", justify="right")
    table.add_column("good for")
    for row in rows:
        figures = row["models"][title]
        table.add_row(
            row["name"],
            row["format"],
            f"{figures['bits_per_weight']:.2f}",
            f"{figures['tensor_bytes'] / 1e9:.1f}",
            row["good_for"] + ("; needs an imatrix" if row["needs_imatrix"] else ""),
        )
    show_table(table)
    console.print(f"Besides, {SOURCE}: {known_quants()[SOURCE].good_for}")
    for group, members in known_groups().items():
        absent = [name for name in all_quants() if name not in members]
        listed = ", ".join(members)
        if len(absent) < len(members) / 2:
            listed = f"every GGUF quant but {', '.join(absent)}"
        console.print(f"In the group {group}: {listed}")


def _folder_row(quant: "Quant", models: "dict[str, Decoder]") -> dict[str, Any]:
    from quantkit.formats.bnb.codec import BnbOptions
    from quantkit.formats.bnb.plan import outline_bnb
    from quantkit.formats.folder import one_of_each
    from quantkit.formats.gptq.plan import GptqOptions, outline_gptq

    figures = {}
    for title, model in models.items():
        alike = one_of_each(model)
        if quant.format == "gptq":
            plan = outline_gptq(alike.model, quant, GptqOptions(), {})
        else:
            plan = outline_bnb(alike.model, quant, BnbOptions())
        figures[title] = alike.bits_per_weight(plan), alike.n_bytes(plan)
    return _describe(quant, figures)


def _row(quant: "Quant", models: "dict[str, Decoder]") -> dict[str, Any]:
    from quantkit.planning.plan import outline_usual

    plans = {title: outline_usual(model, quant) for title, model in models.items()}
    figures = {title: (plan.bits_per_weight, plan.n_bytes) for title, (plan, _) in plans.items()}
    return _describe(quant, figures, any(needed for _, needed in plans.values()))


def _describe(
    quant: "Quant", figures: "Mapping[str, tuple[float, int]]", needed: bool = False
) -> dict[str, Any]:
    return {
        "name": quant.name,
        "format": quant.format,
        "groups": quant.groups,
        "needs_imatrix": needed,
        "good_for": quant.good_for,
        "models": {
            title: {"bits_per_weight": bits, "tensor_bytes": n_bytes}
            for title, (bits, n_bytes) in figures.items()
        },
    }
