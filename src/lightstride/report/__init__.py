"""One page with pictures, made of `result.json` and `search.jsonl` files and of nothing else."""
