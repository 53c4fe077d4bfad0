"""Transport with a dustbin against the golden plans, POT's reference and finite differences."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from s2dc_train.config import LossConfig

from napari_s2dc.method import transport
from napari_s2dc.method.transport import assignment

DATA = Path(__file__).parents[1] / "data"


def load(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in np.load(DATA / name).items()}


@pytest.mark.parametrize("name", ["transport_16.npz", "transport_144.npz"])
@pytest.mark.parametrize("iterations", [5, 20, 100])
def test_golden_plans(name: str, iterations: int) -> None:
    golden = load(name)
    found = assignment(golden["scores"], golden["alpha"], iterations=iterations)
    expected = golden[f"plan_iters{iterations}"]
    assert ((found - expected).abs() / expected).max() <= 1e-6


def scores(batch: int = 3, n: int = 7, m: int = 9, scale: float = 5.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(batch, n, m, generator=generator, dtype=torch.float64)


def test_marginals() -> None:
    plan = assignment(scores(), 1.0, iterations=2000)
    assert torch.allclose(plan[:, :-1].sum(2), torch.ones(3, 7, dtype=torch.float64))
    assert torch.allclose(plan[:, :, :-1].sum(1), torch.ones(3, 9, dtype=torch.float64))
    assert torch.allclose(plan[:, -1].sum(1), torch.full((3,), 9.0, dtype=torch.float64))
    assert torch.allclose(plan[:, :, -1].sum(1), torch.full((3,), 7.0, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:Sinkhorn did not converge")
def test_one_problem_equals_pot_on_numpy() -> None:
    import ot

    score = scores(1)[0]
    n, m = score.shape
    extended = np.full((n + 1, m + 1), 0.7)
    extended[:n, :m] = score.numpy()
    a, b = np.ones(n + 1), np.ones(m + 1)
    a[n], b[m] = m, n
    expected = (n + m) * ot.sinkhorn(
        a / (n + m), b / (n + m), -extended, 1.0, method="sinkhorn_log", numItermax=5000, stopThr=0
    )
    found = assignment(score[None], 0.7, iterations=5000)[0].numpy()
    assert np.abs(found - expected).max() < 1e-9


def test_gradient_is_the_true_one() -> None:
    small = scores(1, 4, 5, 2.0).requires_grad_()
    dustbin = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def objective(score: torch.Tensor, bin_score: torch.Tensor) -> torch.Tensor:
        return (assignment(score, bin_score, iterations=30) * weight).sum()

    assert torch.autograd.gradcheck(objective, (small, dustbin), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.05])
def test_plan_and_gradient_equal_pots_unrolled_solver(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.nn.functional.normalize(
        torch.randn(2, 30, 16, generator=generator, dtype=torch.float64), dim=-1
    )
    weight = torch.randn(2, 31, 31, generator=generator, dtype=torch.float64)

    def solve() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        score = (query @ query.mT / temperature).requires_grad_()
        dustbin = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        # 40 iterations: at the low temperatures far from converged, so the unrolling is compared.
        plan = assignment(score, dustbin, iterations=40)
        by_score, by_dustbin = torch.autograd.grad((plan * weight).sum(), (score, dustbin))
        return plan.detach(), by_score, by_dustbin

    ours = solve()
    monkeypatch.setattr(transport, "LARGEST_SPREAD", {torch.float32: -1.0, torch.float64: -1.0})
    for mine, theirs in zip(ours, solve(), strict=True):
        assert (mine - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@pytest.mark.parametrize("scale", [40.0, 600.0])
def test_scores_too_far_apart_for_exponentials_still_give_the_plan(scale: float) -> None:
    score = (scale * torch.eye(6)).expand(2, -1, -1).clone().requires_grad_()
    wide = 2 * score - scale
    plan = assignment(wide, 0.0, iterations=50)
    assert plan.dtype == torch.float32
    assert torch.allclose(plan[:, :-1, :-1].detach(), torch.eye(6).expand(2, -1, -1), atol=0.02)
    plan.sum().backward()
    assert score.grad is not None
    assert score.grad.isfinite().all()


def test_no_gradient_is_built_when_none_is_wanted() -> None:
    with torch.no_grad():
        assert not assignment(scores().requires_grad_(), 1.0).requires_grad


def test_early_stop_stays_near_the_converged_plan() -> None:
    full = assignment(scores(scale=2.0), 1.0, iterations=1000)
    early = assignment(scores(scale=2.0), 1.0, iterations=1000, tolerance=1e-6)
    assert (full - early).abs().max() < 1e-4


def test_tokens_that_are_not_valid_leave_the_others_as_if_absent() -> None:
    score = scores(2)
    rows = torch.ones(2, 7, dtype=torch.bool)
    columns = torch.ones(2, 9, dtype=torch.bool)
    rows[:, 2] = rows[:, 5] = False
    columns[:, 0] = False
    masked = assignment(score, 1.0, iterations=2000, valid_rows=rows, valid_columns=columns)
    kept_rows, kept_columns = [0, 1, 3, 4, 6], list(range(1, 9))
    expected = assignment(score[:, kept_rows][:, :, kept_columns], 1.0, iterations=2000)
    inner = masked[:, kept_rows][:, :, kept_columns]
    assert torch.allclose(inner, expected[:, :-1, :-1], atol=1e-9)
    assert masked[:, [2, 5], :-1].abs().max() == 0


def test_a_problem_without_any_valid_token_stays_finite() -> None:
    score = scores(1).float().requires_grad_()
    none = torch.zeros(1, 7, dtype=torch.bool)
    plan = assignment(score, 1.0, valid_rows=none)
    plan.sum().backward()
    assert plan.isfinite().all()
    assert score.grad is not None
    assert score.grad.isfinite().all()


def test_float32_agrees_with_float64() -> None:
    sharp = scores(2, 36, 36, 5.0)
    exact = assignment(sharp, 1.0)
    single = assignment(sharp.float(), 1.0)
    assert single.dtype == torch.float32
    assert (single - exact).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:Sinkhorn did not converge")
@pytest.mark.parametrize(("dtype", "spread"), [(torch.float32, 59.0), (torch.float64, 490.0)])
def test_gradient_holds_up_to_the_largest_spread(
    dtype: torch.dtype, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    high = torch.rand(1, 144, 144, generator=generator, dtype=torch.float64) * 5 + spread - 5
    weight = torch.rand(1, 144, 144, generator=generator, dtype=torch.float64)
    valid = torch.zeros(1, 144, dtype=torch.bool)
    valid[0, :3] = True

    def gradient(kind: torch.dtype) -> torch.Tensor:
        leaf = high.to(kind).requires_grad_()
        plan = assignment(leaf, 0.0, iterations=30, valid_columns=valid)
        (plan[:, :-1, :-1] * weight.to(kind)).sum().backward()
        assert leaf.grad is not None
        return leaf.grad[:, :, :3].double()

    found = gradient(dtype)
    monkeypatch.setattr(transport, "LARGEST_SPREAD", dict.fromkeys(transport.LARGEST_SPREAD, -1.0))
    exact = gradient(torch.float64)  # POT's own, in the log domain
    assert (found - exact).abs().max() <= 1e-3 * exact.abs().max()


def alike(temperature: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scores of tokens that resemble their partners, as training has them."""
    generator = torch.Generator().manual_seed(0)
    query, noise = torch.nn.functional.normalize(
        torch.randn(2, 2, 144, 128, generator=generator, dtype=torch.float64), dim=-1
    )
    key = torch.nn.functional.normalize(query + noise, dim=-1)
    return (query @ key.mT / temperature).to(dtype)


@pytest.mark.parametrize("temperature", [0.1, 0.05])
def test_as_training_stops_the_plan_is_the_converged_one(temperature: float) -> None:
    loss = LossConfig()
    stop = {"iterations": loss.sinkhorn_iterations, "tolerance": loss.sinkhorn_tolerance}
    found = assignment(alike(temperature), loss.dustbin, **stop)  # type: ignore[arg-type]
    exact = assignment(alike(temperature, torch.float64), loss.dustbin, iterations=5000)
    # Of the plan, which sums to 1, not of the assignment, which sums to n + m.
    assert (found - exact).abs().max() / (144 + 144) <= 1e-5


def test_a_low_temperature_takes_more_iterations() -> None:
    exact = assignment(alike(0.05, torch.float64), 1.0, iterations=5000)
    errors = [
        float((assignment(alike(0.05), 1.0, iterations=count) - exact).abs().max()) / (144 + 144)
        for count in (100, 500)
    ]
    assert errors[0] > 1e-5 > errors[1]


def test_pots_cheap_gradients_are_not_the_gradient() -> None:
    """Why ours is not POT's solver with ``last_step`` or ``envelope``."""
    from ot.batch import solve_batch

    marginal = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    weight = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradient(kind: str) -> torch.Tensor | None:
        leaf = scores(1, 6, 6, 2.0).requires_grad_()
        plan = solve_batch(
            -leaf,
            reg=1.0,
            a=marginal,
            b=marginal,
            max_iter=500,
            tol=1e-12,
            method="log_sinkhorn",
            grad=kind,
        ).plan
        if not plan.requires_grad:
            return None
        (plan * weight).sum().backward()
        return leaf.grad

    true, last_step = gradient("autodiff"), gradient("last_step")
    assert gradient("envelope") is None
    assert true is not None
    assert last_step is not None
    cosine = torch.nn.functional.cosine_similarity(true.flatten(), last_step.flatten(), dim=0)
    assert cosine < 0.9


def test_no_source_asks_pot_for_its_cheap_gradients() -> None:
    sources = Path(transport.__file__).parents[2]
    files = [
        file
        for folder in ("napari_s2dc", "training", "benchmarks")
        for file in (sources / folder).rglob("*.py")
    ]
    assert len(files) > 100
    cheap = re.compile(r"grad\s*=\s*[\"'](last_step|envelope)")
    assert [file.name for file in files if cheap.search(file.read_text())] == []
