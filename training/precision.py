"""Mixed precision where it pays."""

from contextlib import AbstractContextManager

import torch


def mixed_precision(device: torch.device, *, wanted: bool = True) -> AbstractContextManager[object]:
    """Autocast to bfloat16 where it is wanted and the processor is faster in it, else to nothing.

    On a CPU without bfloat16 arithmetic the convolutions' emulation takes 40 times as long as float32 (measured on AVX2
    with torch 2.13). Intel's since Sapphire Rapids are fast in it with AMX alone, which virtual machines may lack: then
    it takes 1.5 times as long (two convolutions there and back).
    """
    enabled = wanted and (device.type != "cpu" or _bfloat16_is_faster_on_cpu())
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _bfloat16_is_faster_on_cpu() -> bool:
    has = torch.cpu.get_capabilities()
    half_as_fast = has.get("avx512_fp16") and "AMD" not in has.get("cpu_name", "")
    return bool(has.get("amx_bf16") or has.get("bf16") or (has.get("avx512_bf16") and not half_as_fast))
