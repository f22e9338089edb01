"""16-bit checkpoint in, FP8 checkpoint out: a recipe says which layers, `convert` streams them."""
