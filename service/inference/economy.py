"""How a scan goes through a GPU that is short of memory: step by step with less, each step told in the result."""

import torch

from service.imaging.volume import Notice

LOW_MEMORY = "gpu-memory-low"
"""The code of every notice about it."""


class Economy:
    """What the network may take of the device's memory; less after each `tighten`."""

    def __init__(self, device: torch.device, batch_size: int) -> None:
        """All that it likes: whole batches, blended on the device."""
        self.batch_size = batch_size  #: windows at once
        self.accumulates_on = device  #: where logits are blended
        self.notices: tuple[Notice, ...] = ()

    def tighten(self) -> bool:
        """The next step: half the windows at once, then blending on the host. False when there is none left."""
        if self.batch_size > 1:
            self.batch_size //= 2
            self._note(f"windows went through the network {self.batch_size} at a time")
        elif self.accumulates_on.type != "cpu":
            self.accumulates_on = torch.device("cpu")
            self._note("logits were blended in the memory of the host")
        else:
            return False
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the engine allocates for itself, and cannot use what torch sets aside
        return True

    def _note(self, step: str) -> None:
        self.notices += (low_memory(step),)


def low_memory(step: str) -> Notice:
    """The notice that this step was taken."""
    return Notice(LOW_MEMORY, f"The GPU ran out of memory: {step}. The masks may differ in single voxels.")
