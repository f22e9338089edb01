"""Muon: orthogonal steps, and the right weights given to it."""

import torch
from torch import nn

from sd35.demo.optimizer import Muon, orthogonalise, split_parameters


def test_singular_values_come_near_one() -> None:
    """Wide, tall and square matrices end with nearly all singular values between 0.6 and 1.3."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 64, 64), (2, 128, 32), (2, 32, 128)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=generator)).float())
        assert ((values > 0.6) & (values < 1.3)).float().mean() > 0.95


def test_direction_is_kept() -> None:
    """The orthogonal matrix points where the gradient points: their inner product is positive."""
    matrix = torch.randn(1, 32, 48, generator=torch.Generator().manual_seed(1))
    assert (orthogonalise(matrix).float() * matrix).sum() > 0


def test_muon_descends() -> None:
    """A least-squares problem is nearly solved in sixty steps."""
    generator = torch.Generator().manual_seed(2)
    inputs, target = torch.randn(64, 16, generator=generator), torch.randn(16, 16, generator=generator)
    weight = nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([weight], lr=0.1)
    losses = []
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 60)
        loss = (inputs @ weight.T - inputs @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_only_hidden_matrices_go_to_muon() -> None:
    """Modulations, norms, biases, embedders and text encoders stay with AdamW, and nothing is lost."""
    block = nn.ModuleDict(
        {
            "attn": nn.Linear(8, 8),
            "norm1": nn.ModuleDict({"linear": nn.Linear(8, 48)}),
            "ff": nn.Linear(8, 32),
        }
    )
    model = nn.ModuleDict({"transformer_blocks": nn.ModuleList([block]), "proj_out": nn.Linear(8, 8)})
    encoder = nn.Linear(4, 4)
    matrices, rest = split_parameters(model, [encoder])
    assert {id(p) for p in matrices} == {id(block["attn"].weight), id(block["ff"].weight)}
    assert len(matrices) + len(rest) == len([*model.parameters(), *encoder.parameters()])
