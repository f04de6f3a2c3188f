"""Parts that every training shares.

losses    cross-entropy and KL in slices    schedule   warm-up and cosine
top_k_kl   KL from what is remembered of a teacher's distributions
checkpoint   what a killed training resumes from  fsdp    weights shared by processes
"""
