"""Training the grafts.

start, initialize   new grafts on a base    loop    the training loop    loss   of one batch
teacher_forced    drafts at every token    own_cuts  segments by the model's own drafts
features    inputs of the confidence    hidden_cache    the frozen base's states, kept
plain_control    the base trained plainly, to compare
eagle3_start    a new draft head    eagle3_loss    its chains, eagle3_learner   of one batch
"""
