"""The steps of `lightstride recover`: texts, the watch over a held-out one, the dense model."""
