"""What every training here shares: losses in slices, rates, checkpoints."""
