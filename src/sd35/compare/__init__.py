"""How far apart are two checkpoints' pictures of the same prompts and seeds?"""
