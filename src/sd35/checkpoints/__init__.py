"""Files on one side, names and tensors on the other: nothing here knows what a tensor is for."""
