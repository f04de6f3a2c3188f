"""The steps of `lightstride smash`: examples, training, taken heads, memory plans."""
