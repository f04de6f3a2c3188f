"""One file a command; the only modules that join whole rooms.  Nothing imports them but the cli.

prune    texts, statistics, search, cut checkpoint    (prune_setup, prune_options, prune_texts)
smash    prompts, answers, training, checkpoint    (smash_examples, smash_training)
generate   evaluate   bench   export   report    a file each
cache    the converted copies that are kept
doctor   versions, devices, rates, cache and a model's hashes, on one screen
"""
