"""Light models, long strides: prune language models, and decode several tokens a step."""

from wrapt import register_post_import_hook

__version__ = "0.1.0"

# Our checkpoints open without remote code in any process that imports this package.  It stays
# cheap: transformers is imported when someone else does, and only then is it told.
register_post_import_hook(
    "lightstride.announce:announce", "transformers.models.auto.configuration_auto"
)
