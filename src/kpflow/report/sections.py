"""What the page shows: a list of sections, each a list of plots with what they need and what they say."""

from kpflow import plots
from kpflow.plots import leading, paths

from . import notes
from .parts import Plot, Section

__all__ = ["SECTIONS"]

SECTIONS = (
    Section(
        "training",
        "Training",
        "What gradient descent achieved, and whether one step of it does what its linear theory says.",
        (
            Plot(
                "loss",
                "Loss and score over training",
                plots.loss_and_score,
                ("loss",),
                "Loss (logarithmic axis) and task score at every analysed checkpoint, on the analysis trials, which "
                "are the same at every step. The step axis is logarithmic, with room for step 0.",
            ),
            Plot(
                "loss-change",
                "Predicted and actual change of the loss",
                plots.loss_change,
                ("predicted_loss_change", "actual_loss_change"),
                "Change of the loss by one step of gradient descent. Predicted: first order, the squared norm of the "
                "gradient times minus the learning rate. Actual: the loss after the step less the loss before. Their "
                "ratio is 1 where the step is small enough for the linear theory.",
                note=notes.learning_rate,
            ),
            Plot(
                "forecasts",
                "Loss forecast from checkpoint to checkpoint",
                plots.loss_forecasts,
                ("loss", "forecast_step", "forecast_loss"),
                "What the loss on the analysis trials would become if the NTK stayed as it is at each checkpoint, by "
                "the optimizer with the state that it had then (Adam: momentum, and its second moments as a metric), "
                "full-batch, up to the next checkpoint; left beside the loss that was reached, right how much it "
                "misses that, |forecast − loss| / loss, beside the NTK's relative change in the same interval. A "
                "forecast holds if it misses by 10 % at most, breaks if by more, and is open where its own error, from "
                "a small Krylov space, does not decide. It knows neither the fresh trials of training nor Adam's "
                "factor 1 / (1 − β₁ᵗ), and so is too slow in Adam's first tens of steps.",
                note=notes.forecasts,
            ),
        ),
        reason="forecast_left_out",
    ),
    Section(
        "operators",
        "Operators: propagator, parameter kernel, NTK",
        "A step of gradient descent moves the states S by dS = −η P K Pᵀ ∂L/∂S. The propagator P is the linearised "
        "flow; the parameter kernel K is what the weights can change at once; the state-space NTK is P K Pᵀ.",
        (
            Plot(
                "ranks",
                "Effective ranks and sizes",
                plots.effective_ranks,
                tuple(f"{name}_effective_rank" for name in ("ntk", "propagator", "kernel")),
                "Effective rank (tr A)² / ‖A‖²_F of A = NTK, P Pᵀ and K, i.e. the number of directions that carry "
                "the operator, and, where the record has them, their traces; that of P Pᵀ is ‖P‖²_F. Traces and "
                "norms are estimated matrix-free, those of K exact where its structure tells them; bars are one "
                "standard error.",
                any_of=True,
                sampled=True,
            ),
            Plot(
                "spectra",
                "Leading spectra",
                plots.spectra,
                tuple(f"{name}_spectrum" for name in ("ntk", "propagator", "kernel")),
                "Leading eigenvalues of NTK and K and leading singular values of P at chosen steps from the first to "
                "the last, by block Krylov iterations with products alone; those of K exactly, where its structure "
                "tells them. A steep fall means that few directions learn.",
                any_of=True,
            ),
            Plot(
                "kernel-movement",
                "How far the kernel moved",
                plots.kernel_movement,
                ("kernel_change", "kernel_alignment"),
                "The NTK Θ of each checkpoint beside those of the first and of the one before, Θₛ: relative change "
                "‖Θ − Θₛ‖ / ‖Θₛ‖ in Frobenius norms, and the cosine ⟨Θ, Θₛ⟩ / (‖Θ‖ ‖Θₛ‖), 1 for a kernel that has only "
                "grown. What the NTK of a checkpoint says of later steps holds for as long as it stays. From products "
                "of all kernels with the same random probes; bars are one standard error.",
                note=notes.movement,
            ),
        ),
    ),
    Section(
        "collapse",
        "The collapse pipeline",
        "The error signal passes backwards through Pᵀ, through what the weights can change, K, and forwards through "
        "P. Each stage may lose dimensions; the states can only change within what is left.",
        (
            Plot(
                "pipeline",
                "Effective dimension of each stage",
                plots.collapse_pipeline,
                ("effective_dimension",),
                "Effective dimension (participation ratio tr(C)² / tr(C²) of the second moment C over trials and "
                "time, not centred) of inputs, states, error ∂L/∂S, adjoint Pᵀ error, K Pᵀ error, the change P K Pᵀ "
                "error, and targets: over training, and along the pipeline at chosen steps. Operators are applied "
                "exactly.",
                note=notes.shares,
            ),
            Plot(
                "pipeline-axes",
                "Effective dimension along each axis",
                plots.collapse_axes,
                ("effective_dimension_along",),
                "The same along each axis of trials × time × units, C being the second moment over all others.",
            ),
            Plot(
                "bounds",
                "What is the network's, and what the task's",
                plots.rank_bounds,
                (
                    *(f"ntk_{name}{end}" for name in ("effective_rank", "norm") for end in ("_low", "_high")),
                    *("ntk_effective_rank", "ntk_rank", "ntk_spectrum", "ntk_effective_rank_along"),
                ),
                "Left and middle: effective rank and norm of the NTK, and in grey what every network with this K and "
                "with such extreme singular values of P may have, whatever its task: what is missing to the top is the "
                "doing of this P on these trials. Right: effective rank of the NTK's partial trace on each axis. "
                "Singular values of P are estimated from inside. Bars are one standard error.",
                sampled=True,
                note=notes.allowed,
            ),
        ),
    ),
    Section(
        "representations",
        "What the states tell apart",
        "Whether training makes the states of all trials of a class one point, and the classes the corners of a "
        "simplex, and when the geometry of the states as a whole becomes that of the trained network.",
        (
            Plot(
                "neural-collapse",
                "Neural collapse of the states at the end of a trial",
                plots.neural_collapse,
                ("neural_collapse",),
                "0 is collapse. NC1: tr(Σ_W Σ_B⁺) / C, variability within the C classes against that between their "
                "means. NC2: how unequal the distances of the means from their centre are, and the mean of "
                "|cos + 1/(C − 1)| over pairs of them. NC3: ‖W/‖W‖ − M/‖M‖‖² of read-out and centred means; NC4: the "
                "share of trials that the read-out and the nearest mean decide differently; both where the read-out is "
                "a linear classifier of the same classes. NC5: mean |cos| between the class means and the mean state "
                "of data of no class, where such were given. Papyan, Han and Donoho 2020; Ben Ammar et al. 2024.",
                note=notes.classes,
            ),
            Plot(
                "state-similarity",
                "Similarity of the states between checkpoints",
                plots.state_similarity,
                ("state_similarity",),
                "Linear CKA, ‖Xᵀ Y‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) in Frobenius norms, of the centred states X and Y of two "
                "checkpoints over all trials and times: 1 for states that are alike up to rotation and scale. Left: "
                "all pairs, the stronger the colour the more alike, from the least of them to 1. Right: the similarity "
                "with the first and with the last of them. Kornblith et al. 2019.",
                note=notes.components,
            ),
        ),
        reason="neural_collapse_left_out",
        optional=True,
    ),
    Section(
        "modes",
        "What is learned first: the leading modes of the NTK",
        "The error shrinks fastest along the leading eigenvectors of the NTK.",
        (
            Plot(
                "ntk-modes",
                "Leading NTK modes over trials and time",
                plots.ntk_modes,
                ("ntk_mode_time",),
                "Leading eigenvectors of the NTK at the first and the last analysed step. An eigenvector lives on "
                "trials × time × units; shown is its dominant separable part, trials × time (heat map: trials from "
                "bottom to top in the order of their condition; orange positive, blue negative, scaled to the "
                "largest entry; below: one course per trial), and its weights over the units (strip): modes alike in "
                "time differ in their units. In brackets: that part's share of the mode's squared norm.",
                note=notes.thinned({"trial": leading.MOST_TRIALS, "time": leading.MOST_TIMES}),
            ),
        ),
    ),
    Section(
        "bias",
        "The self-referential bias",
        "For a weight matrix, K is the Gram matrix of what the weight sees, times an identity. Recurrent weights see "
        "the states: gradient descent prefers to change the states along what they already do.",
        (
            Plot(
                "core",
                "The core of K beside the states’ own PCA",
                plots.self_referential_bias,
                ("core_spectrum", "state_spectrum"),
                "Eigenvalues of the Kronecker core’s Gram matrix and variances of the states’ principal components, "
                "each divided by its sum, at the first and the last analysed step. Overlap (where the record has "
                "it): of the subspace of the leading core modes with that of the states’ leading time courses; 1 is "
                "the same.",
            ),
        ),
    ),
    Section(
        "trajectories",
        "State trajectories",
        "What the network does on each trial, in the three directions of state space that vary most.",
        (
            Plot(
                "paths",
                "States in three principal components",
                plots.trajectories,
                ("trajectory",),
                "One line per trial, coloured by condition; a dot marks the end of the trial. Principal components "
                "are those of each step’s own states, with the share of variance that each explains; their signs, "
                "which mean nothing, are chosen to agree with the last step.",
                viewer=True,
                note=notes.thinned({"trial": paths.MOST_PATHS, "time": paths.MOST_POINTS}),
            ),
        ),
    ),
    Section(
        "dynamics",
        "Dynamics: fixed points, bifurcations, Lyapunov exponents",
        "Where the network would stay if its input stood still, when such points are born, vanish or change their "
        "stability in training, and how fast nearby states come together.",
        (
            Plot(
                "fixed-points",
                "Fixed points among the trajectories",
                plots.fixed_points,
                ("fixed_point_position", "fixed_point_stable", "fixed_point_slow", "trajectory"),
                "States that the step maps to themselves at a static input, in the principal components of the "
                "figure above, among the trajectories of all trials (grey). Filled: stable, all multipliers |μ| < 1. "
                "Open: unstable in some direction. Crosses: slow points, minima of the speed that are no fixed "
                "points. By Adam, Levenberg–Marquardt and Newton in float64. Near in this view need not be near in "
                "state space. A consistent index sum does not show that all points were found; another shows that "
                "some were not.",
                note=notes.search,
            ),
            Plot(
                "bifurcations",
                "Fixed points and bifurcations over training",
                plots.bifurcations,
                ("fixed_point_multiplier", "fixed_point_stable", "fixed_point_slow"),
                "Number of stable and of other fixed points that were found at each checkpoint, and the largest |μ| "
                "of each; above 1 it is unstable. Ticks at the top: bifurcations, by continuation of the points of "
                "both checkpoints around them along the straight line between their parameters. Training took "
                "another way from one to the other: that something happened between them is certain, the step "
                "within the interval is not, and the kind may be another.",
                note=notes.unresolved,
            ),
            Plot(
                "lyapunov",
                "Lyapunov exponents over training",
                plots.lyapunov,
                ("lyapunov_exponent",),
                "Leading rates, per time step, at which states that are close move apart (above 0) or together, under "
                "the same static input; the darkest line is the largest. By orthonormal frames along trajectories of "
                "a few hundred steps from states of the trials, means with one standard error. Where the network "
                "forgets more slowly than that, they are rates over that time and not yet their limits.",
                note=notes.static_input,
            ),
        ),
        reason="dynamics_left_out",
    ),
    Section(
        "objectives",
        "What objectives do to each other",
        "Several tasks, or the epochs, outputs or trials of one, are learned by the same weights. A step on the error "
        "of one changes the states, and so the loss, of all others: cosines say at which stage they come to help or to "
        "hinder.",
        (
            Plot(
                "objective-alignment",
                "Alignment of the objectives at each stage",
                plots.objective_alignment,
                ("objective_alignment",),
                "Cosines between the error signals ∂L/∂S of the objectives, their adjoints Pᵀ ∂L/∂S, their gradients, "
                "what a step changes at once, J times the gradient, and in the end, P J times the gradient, at the "
                "first, a middle and the last step. Orange: they agree; blue: they are opposed. Computed exactly.",
                note=notes.objectives,
            ),
            Plot(
                "objective-course",
                "Alignment of pairs of objectives over training",
                plots.objective_course,
                ("objective_alignment",),
                "The same cosines, for each pair of objectives. Where these are tasks or groups of trials, also "
                "‖NTK_ij‖ / √(‖NTK_ii‖ ‖NTK_jj‖), the size of the block of the NTK by which errors of one move the "
                "states of another, in Frobenius norms estimated from random probes, 0 where they do not meet; "
                "and the cosine of NTK_ii and NTK_jj, how alike the two are. Bars are one standard error.",
            ),
            Plot(
                "interference",
                "What a step on one objective does to the loss of another",
                plots.objective_interference,
                ("objective_interference",),
                "Predicted change −⟨g_i, g_j⟩ of the loss of the row's objective by a gradient step on the column's, "
                "in units of what that step takes from its own, ⟨g_j, g_j⟩: −1 on the diagonal, positive (orange) "
                "where the column's hinders the row's. Computed exactly.",
            ),
        ),
        reason="objectives_left_out",
        optional=True,
    ),
)
"""The page in reading order. A further section is one more entry."""
