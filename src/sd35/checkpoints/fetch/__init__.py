"""Files from a hub, a Git LFS remote or another folder: whole and verified, or not at all."""
