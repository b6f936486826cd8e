"""The estimators in a table: what each is for, what it costs, whether it is biased."""

from __future__ import annotations

from typing import NamedTuple

from bbvi.estimators.arm import Arm
from bbvi.estimators.arms import Arms
from bbvi.estimators.base import Estimator
from bbvi.estimators.coordinate import CoordinateControlVariate
from bbvi.estimators.disarm import DisArm
from bbvi.estimators.double_cv import DoubleCv
from bbvi.estimators.doubly_reparameterized import DoublyReparameterized
from bbvi.estimators.enumeration import Enumeration
from bbvi.estimators.gumbel_softmax import GumbelSoftmax
from bbvi.estimators.local_expectation import LocalExpectation
from bbvi.estimators.measure_valued import MeasureValued
from bbvi.estimators.mixed import Mixed
from bbvi.estimators.mu_prop import MuProp
from bbvi.estimators.overdispersed import Overdispersed
from bbvi.estimators.ovis import Ovis
from bbvi.estimators.per_site import PerSite
from bbvi.estimators.rebar import Rebar
from bbvi.estimators.rein_max import ReinMax
from bbvi.estimators.relax import Relax
from bbvi.estimators.reparameterization import Reparameterization
from bbvi.estimators.reweighted_wake_sleep import ReweightedWakeSleep
from bbvi.estimators.rodeo import Rodeo
from bbvi.estimators.score_function import ScoreFunction
from bbvi.estimators.stick_breaking import StickBreaking
from bbvi.estimators.straight_through import StraightThrough
from bbvi.estimators.stratified import Stratified
from bbvi.estimators.taylor import TaylorControlVariate
from bbvi.estimators.unordered_set import UnorderedSet
from bbvi.estimators.var_grad import VarGrad
from bbvi.estimators.vimco import Vimco

SMOOTH = "reparameterized sites, differentiable `log_joint`"
ANY = "any"
BINARY = "Bernoulli sites"
CATEGORICAL = "Categorical, one-hot and Bernoulli sites"
SMOOTH_BINARY = "Bernoulli sites, differentiable `log_joint`"
RELAXED = "Bernoulli and one-hot sites, differentiable `log_joint`"


class Entry(NamedTuple):
    """A row of the catalogue.

    Attributes:
      estimator: the class.
      latents: which sites and which ``log_joint`` it is for.
      objectives: which objectives.
      cost: evaluations of ``log_joint`` per step, with S = ``num_samples``.
      bias: "none", or what it is.
      source: author and year.
      use: when to take it, in a sentence.
    """

    estimator: type[Estimator]
    latents: str
    objectives: str
    cost: str
    bias: str
    source: str
    use: str


CATALOGUE = (
    Entry(Reparameterization, SMOOTH, "all but forward KL", "S gradients", "none",
          "Kingma and Welling 2014",
          "First choice for continuous latents of a differentiable model, and the default of "
          "`fit` there."),
    Entry(DoublyReparameterized, SMOOTH, "IWAE, Rényi, chi", "S gradients", "none",
          "Tucker et al. 2019",
          "Bounds of several draws, where the pathwise gradient drowns in noise as K grows."),
    Entry(Stratified, "`Mixture` guides, differentiable `log_joint`", "ELBO", "K S gradients",
          "none", "Morningstar et al. 2021",
          "Mixtures of joint guides, for posteriors of several modes; the default of `fit` there."),
    Entry(TaylorControlVariate, "mean-field normals, twice differentiable `log_joint`", "ELBO",
          "S + 1 gradients, 1 Hessian-vector product", "none", "Miller et al. 2017",
          "Near the optimum of models that are almost quadratic over the width of q; with a "
          "wide q it fades out."),
    Entry(MeasureValued, "normals, gammas, Bernoullis; any `log_joint`", "ELBO",
          "up to 4 S values per entry", "none", "Mohamed et al. 2020",
          "A few continuous latents of a function without derivatives or with jumps, where "
          "many values are cheap."),
    Entry(ScoreFunction, ANY, "ELBO", "S values", "none", "Ranganath et al. 2014",
          "Any model, above all one that is not differentiable and falls into many terms."),
    Entry(VarGrad, ANY, "ELBO", "S values", "none", "Richter et al. 2020",
          "As a plain baseline that takes any latents; `ScoreFunction` has less noise where "
          "the model has many terms."),
    Entry(CoordinateControlVariate, ANY, "ELBO", "S values", "none", "Ranganath et al. 2014",
          "Many draws per step, and parameters of one block that need baselines of their own, "
          "as location and scale."),
    Entry(Overdispersed, "exponential families", "ELBO", "S values", "none", "Ruiz et al. 2016",
          "Local terms and a guide so narrow that its draws miss the tails; not a likelihood "
          "that reads many latents."),
    Entry(Vimco, ANY, "IWAE, Rényi, chi", "S values", "none", "Mnih and Rezende 2016",
          "Bounds of a few draws where latents are discrete or `log_joint` has no derivative."),
    Entry(Ovis, ANY, "IWAE", "S values", "none; with gamma > 0 bounded", "Liévin et al. 2020",
          "The importance-weighted bound of many draws with discrete latents: its signal "
          "grows with K."),
    Entry(ReweightedWakeSleep, ANY, "forward KL", "S values", "O(1/K)",
          "Bornschein and Bengio 2015",
          "A guide that must cover the posterior rather than sit in a mode of it, of any "
          "latents."),
    Entry(Enumeration, "discrete sites", "ELBO", "1 value per joint state of a component",
          "none; exact", "Obermeyer et al. 2019",
          "Up to about ten binary latents in each part of the model that shares no term: "
          "exact."),
    Entry(LocalExpectation, "discrete sites", "ELBO", "S K values per colour", "none",
          "Titsias and Lázaro-Gredilla 2015",
          "Discrete latents that share few terms, as assignments, chains and grids; the "
          "default of `fit` where one colour is enough."),
    Entry(Arm, BINARY, "ELBO", "S values", "none", "Yin and Zhou 2019",
          "To compare with the literature; `DisArm` has less noise at the same cost."),
    Entry(DisArm, BINARY, "ELBO", "S values", "none", "Dong et al. 2020; Yin et al. 2020",
          "Bernoulli latents with two draws, or by pairs, where `log_joint` has no "
          "derivative."),
    Entry(Arms, BINARY, "ELBO", "S values", "none", "Dimitriev and Zhou 2021",
          "Bernoulli latents with more than two draws, where `log_joint` has no derivative."),
    Entry(StickBreaking, CATEGORICAL, "ELBO", "S values", "none", "Dong et al. 2021",
          "Categorical latents where `log_joint` has no derivative and local expectations "
          "cost too much."),
    Entry(UnorderedSet, "discrete sites with few joint states per component", "ELBO", "S values",
          "none", "Kool et al. 2020",
          "Few joint states, and a q so concentrated that independent draws would repeat each "
          "other."),
    Entry(MuProp, RELAXED, "ELBO", "S values, 1 gradient", "none", "Gu et al. 2016",
          "Binary or one-hot latents where `log_joint` is nearly linear, as at the start of a "
          "run, with few gradients."),
    Entry(DoubleCv, RELAXED, "ELBO", "S gradients", "none", "Titsias and Shi 2022",
          "Binary or one-hot latents in networks, with a few draws; its gain is largest early in "
          "the run."),
    Entry(Rodeo, SMOOTH_BINARY, "ELBO", "S gradients", "none", "Shi et al. 2022",
          "Bernoulli latents in strongly curved networks, where a network of its own pays for "
          "its time."),
    Entry(Rebar, RELAXED, "ELBO", "S values, 2 S gradients", "none", "Tucker et al. 2017",
          "Binary or one-hot latents in networks, where two gradients a draw pay: its gain is "
          "largest in the middle of a run."),
    Entry(Relax, RELAXED, "ELBO", "S values, 2 S gradients", "none", "Grathwohl et al. 2018",
          "As `Rebar`, for long runs in which a free-form control variate has the time to "
          "learn."),
    Entry(StraightThrough, RELAXED, "ELBO", "S gradients", "biased", "Bengio et al. 2013",
          "A quick start with little noise where the answer need not be the objective's "
          "optimum."),
    Entry(GumbelSoftmax, RELAXED, "ELBO", "S values, S gradients", "biased",
          "Jang et al. 2017; Maddison et al. 2017",
          "To compare with the literature, or where relaxed values are what the model is for."),
    Entry(ReinMax, RELAXED, "ELBO", "S gradients", "biased", "Liu et al. 2023",
          "As `StraightThrough`, with less bias: exact where `log_joint` is quadratic along "
          "each latent."),
    Entry(PerSite, "pathwise, score function, local expectation: site by site", "ELBO",
          "S gradients", "none", "Schulman et al. 2015",
          "Models with latents of several kinds; what `fit` composes by itself."),
    Entry(Mixed, "continuous sites pathwise, discrete sites by a discrete estimator", "ELBO",
          "G times the discrete estimator's", "as the discrete estimator's",
          "Schulman et al. 2015",
          "Discrete latents whose model falls apart once the continuous ones are drawn, by a "
          "discrete estimator of your choice."),
)  # fmt: skip


def catalogue_table() -> str:
    """The catalogue as a Markdown table.

    Returns:
      One row per estimator, with its latents, objectives, cost, bias and source.

    Example:
      >>> import bbvi
      >>> print(bbvi.catalogue_table().splitlines()[2][:50])
      | `Reparameterization` | reparameterized sites, di

    References:
      Mohamed, Rosca, Figurnov and Mnih (2020), Monte Carlo Gradient Estimation in Machine Learning.
    """
    rows = [
        f"| `{entry.estimator.__name__}` | " + " | ".join(entry[1:-1]) + " |" for entry in CATALOGUE
    ]
    header = "| estimator | latents | objectives | cost per step | bias | source |"
    return "\n".join([header, "|---|---|---|---|---|---|", *rows])
