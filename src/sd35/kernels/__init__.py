"""Operations on tensors. `reference` defines them, `api` chooses who runs them."""
