"""Speed and memory: measure (decode, prefill), machine (what the hardware allows)."""
