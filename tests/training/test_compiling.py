"""The encoder of a run compiled, and left as it is where there is no compiler."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from s2dc_train.compiling import compile_encoders
from s2dc_train.passes import Passes
from s2dc_train.student_teacher import Branch, make_teacher

from napari_s2dc.method.encoder import SwinEncoder

CPU = torch.device("cpu")


@pytest.fixture
def branch() -> Branch:
    torch.manual_seed(0)
    encoder = SwinEncoder.from_size("tiny", window_size=4)
    return Branch(encoder, token_stage=2, hidden=8, outputs=4, layers=2)


def _results(branch: Branch, passes: Passes | None = None) -> list[torch.Tensor]:
    crops = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens, pooled = branch.encode(crops, passes)
    weights = [branch.encoder.swin.patch_embed.proj.weight]
    return [tokens, pooled, *torch.autograd.grad(tokens.square().mean(), weights)]


def test_compiled_features_and_gradients_are_the_same(
    branch: Branch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _results(branch)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    compile_encoders(branch, make_teacher(branch), device=CPU)
    for mine, reference in zip(_results(branch), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
    # One for the probe and one for the whole encoder
    assert len(graphs) == 2
    twice = _results(branch, Passes(together=1, kept=1))
    for mine, reference in zip(twice, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-4)
    # One more for crops alone, whether their activations are kept or not
    assert len(graphs) == 3


def test_a_teacher_runs_its_own_encoder(branch: Branch) -> None:
    teacher = make_teacher(branch)
    with torch.no_grad():
        for parameter in branch.encoder.parameters():
            parameter.zero_()
        assert teacher.encode(torch.rand(1, 1, 32, 32, 32))[0].any()


def test_without_a_compiler_a_sentence_and_nothing_else(
    branch: Branch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found.\nAnd a long trace.")

    monkeypatch.setattr(torch, "compile", lambda *_: broken)
    with caplog.at_level(logging.WARNING, "s2dc_train"):
        compile_encoders(branch, device=CPU)
    assert [record.getMessage() for record in caplog.records] == [
        "trainer.compile: this machine cannot compile for cpu (No working C++ compiler found.); "
        "the encoder runs as it is, with the same results."
    ]
    assert len(_results(branch)) == 3
