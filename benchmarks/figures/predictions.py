"""Figure of docs/mathematics/parameterizations.md: what an error of the prediction does, and what losses weigh."""

from pathlib import Path

from benchmarks.figures.detail import Detail, Lines, span
from unfog.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, V
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.weighting import Constant, EDMWeight, MinSNR, Sigmoid, Weight
from unfog.evaluation.pictures import COLOURS, dress, panels, save

PREDICTIONS: dict[str, Parameterization] = {
    "eps": Eps(),
    "x0": X0(),
    "v": V(),
    "flow": Flow(),
    "EDM(0.5)": EDM(0.5),
}
WEIGHTS: dict[str, Weight] = {
    "1 on eps (L_simple)": Constant(Eps()),
    "1 on x0": Constant(X0()),
    "1 on v": Constant(V()),
    "1 on flow": Constant(Flow()),
    "EDM(0.5)": EDMWeight(0.5),
    "min-SNR(5)": MinSNR(5.0),
    "sigmoid(−1)": Sigmoid(-1.0),
}


def draw(folder: Path, detail: Detail) -> Lines:
    """Draw the figure of the page."""
    log_snr = span(-9.0, 9.0, detail.points)
    alpha, sigma = Cosine().scales(Cosine().time(log_snr))
    figure, ((left, right),) = panels(1, 2, panel=(4.6, 3.6))
    dress(left, "log-SNR   (noise left, data right)", "error of x0 per error of F", log_y=True)
    for (name, parameterization), colour in zip(PREDICTIONS.items(), COLOURS, strict=False):
        out = parameterization.solve(alpha, sigma).x0_out.abs()
        left.plot(log_snr.numpy(), out.numpy(), color=colour, linewidth=1.6, label=name)
    left.set_ylim(6e-3, 1.5e2)
    dress(right, "log-SNR   (noise left, data right)", "weight on the squared error of x0", log_y=True)
    for (name, weight), colour in zip(WEIGHTS.items(), COLOURS, strict=False):
        right.plot(log_snr.numpy(), weight.on(X0(), alpha, sigma).numpy(), color=colour, linewidth=1.6, label=name)
    right.set_ylim(1e-4, 3e4)
    for one in (left, right):
        one.set_xlim(-9, 9)
        one.legend(frameon=False, fontsize=8.5, labelcolor="linecolor", handlelength=1.2)
    save(figure, folder / "predictions.png")
    return []
