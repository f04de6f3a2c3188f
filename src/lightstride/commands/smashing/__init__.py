"""The steps of `lightstride smash`: examples, training, heads (trained, taken), memory plans."""
