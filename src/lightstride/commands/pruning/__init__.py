"""The steps of `lightstride prune`: its settings and texts, what it opens, and the dry run."""
