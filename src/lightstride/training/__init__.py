"""What every training shares.

losses    cross-entropy and KL in slices    schedule   warm-up and cosine
checkpoint   what a killed training resumes from  fsdp    weights shared by processes
"""
