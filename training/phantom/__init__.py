"""A procedural CT of the trunk with all 32 labels: drawn, not scanned, so every mask and every volume is known."""
