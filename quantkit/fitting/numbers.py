"""An answer as JSON values, every size in bytes."""

from collections.abc import Sequence
from typing import Any

from quantkit.fitting.answer import Answer
from quantkit.fitting.commands import Steps
from quantkit.fitting.memory import MemoryPart, total
from quantkit.fitting.quality import Scale
from quantkit.fitting.verdict import Row, describe


def as_numbers(result: Answer, steps: Steps | None) -> dict[str, Any]:
    """The answer as JSON values, with the commands for the quant to take."""
    subject, machine = result.subject, result.machine
    return {
        "model": {
            "title": subject.title,
            "origin": subject.origin,
            "parameters": subject.n_parameters,
            "active_parameters": subject.n_active,
            "trained_context": subject.shape.n_ctx_train,
            "described_by": subject.describer,
            "fetched": subject.n_fetched,
        },
        "machine": {
            "title": machine.title,
            "gpus": [{"name": gpu.name, "usable": gpu.usable} for gpu in machine.gpus],
            "usable_ram": machine.ram,
            "free_disk": machine.disk,
            "unified": machine.unified,
            "source": machine.source,
        },
        "context": result.settings.context,
        "parallel": result.settings.parallel,
        "kv_type": result.settings.kv_type,
        "flash_attention": result.settings.flash_attn,
        "recommended": result.recommended,
        "reason": result.reason,
        "get": (steps.get or None) if steps else None,
        "run": steps.run if steps else None,
        "ranked_by": {"label": result.scale.label, "source": result.scale.source},
        "warnings": result.warnings,
        "quants": [_row_numbers(row, result.scale) for row in result.rows],
        "other_formats": [
            {
                "name": other.name,
                "weight_bytes": other.weight_bytes,
                "memory": _part_numbers(other.parts),
                "fits": other.fits,
                "spare": other.spare,
                "note": other.note,
            }
            for other in result.others
        ],
    }


def _row_numbers(row: Row, scale: Scale) -> dict[str, Any]:
    variant, placement, loss = row.variant, row.placement, row.loss
    return {
        "quant": variant.name,
        "format": variant.format,
        "tensor_bytes": variant.tensor_bytes,
        "file_bytes": variant.file_bytes,
        "file_bytes_label": "exact" if variant.file_is_exact else "modelled",
        "files": variant.n_files,
        "bits_per_weight": variant.bits_per_weight,
        "needs_imatrix": variant.needs_imatrix,
        "needs_allow_requantize": variant.requantizes,
        "download_to_build": variant.download_bytes,
        "disk_to_build": row.disk_to_build,
        "disk_to_run": row.disk_to_run,
        "mode": placement.mode,
        "fits": placement.fits,
        "verdict": describe(placement),
        "n_gpu_layers": placement.n_gpu_layers,
        "n_cpu_moe": placement.n_cpu_moe,
        "layers_per_gpu": placement.layers_per_gpu,
        "memory": _part_numbers(placement.parts),
        "memory_total": total(placement.parts),
        "spare": placement.spare,
        "short": placement.short,
        "vram_for_whole": row.vram_for_whole,
        "ram_alone": row.ram_alone,
        "longest_context": row.longest_context,
        "command": row.command,
        "advice": row.advice,
        "kld": loss.kld if loss else None,
        "kld_label": scale.label if loss else None,
        "kld_with_imatrix": loss.weighted if loss else None,
        "beaten_by": row.beaten_by,
        "tokens_per_second": row.tokens_per_second,
        "tokens_per_second_label": "estimate" if row.tokens_per_second else None,
    }


def _part_numbers(parts: Sequence[MemoryPart]) -> list[dict[str, Any]]:
    return [
        {"part": p.name, "device": p.device, "bytes": p.n_bytes, "label": p.label} for p in parts
    ]
