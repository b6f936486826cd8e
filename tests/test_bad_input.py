"""Mistakes that people make, all over the public surface: each error says what was got and helps.

Next to none of them compiles anything: a mistake is found from types, names and shapes.
"""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi

GUIDE = bbvi.MeanField({"w": bbvi.Normal((3,)), "tau": bbvi.LogNormal()})
COINS = bbvi.MeanField({"w": bbvi.Normal((3,)), "c": bbvi.Bernoulli((3,))})
X = np.ones(3, np.float32)
Y = {"y": X}
Z = {"w": np.zeros(3), "tau": 1.0}
MLP = bbvi.networks.MLP((8,))


def key():
    return jax.random.key(0)


def log_joint(x, z):
    return norm.logpdf(z["w"]).sum() - z["tau"] + norm.logpdf(x, z["w"], z["tau"]).sum()


def of_y(x, z):
    return log_joint(x["y"], z)


def coins(x, z):
    heads = z["c"] * jnp.log(0.3)
    return norm.logpdf(z["w"]).sum() + heads.sum() + norm.logpdf(x, z["w"] + z["c"]).sum()


def learned(x, z, theta):
    return log_joint(x, z) * theta["a"]


def with_if(x, z):
    return log_joint(x, z) if z["tau"] > 1 else 0.0


def with_numpy(x, z):
    return np.sum(np.log(z["tau"])) + log_joint(x, z)


def terms(x, z):
    return {"all": log_joint(x, z)}


def fit(model=log_joint, guide=GUIDE, x=X, **options):
    return bbvi.fit(model, guide, x, **({"num_steps": 1, "progress": False} | options))


@functools.cache
def result():
    """A run of one step."""
    return fit(init_params=GUIDE.params_at(Z), optimizer=optax.sgd(0.1))


def step():
    return bbvi.make_step(log_joint, GUIDE)


def compare(**options):
    return bbvi.compare_estimators(log_joint, GUIDE, X, progress=False, **options)


def choose(**options):
    return bbvi.choose_estimator(log_joint, GUIDE, X, **({"key": key()} | options))


def factorized(**options):
    return bbvi.FactorizedLogJoint(terms, **options)


# What is done: a function, the error, and what its message holds. To add a line: try the mistake,
# read what comes, and make it say what was got, what was expected and what to do.
MODELS = {
    "no function": (lambda: fit(3), TypeError, r"log_joint must be a function.*got 3"),
    "None": (lambda: fit(None), TypeError, "log_joint must be a function.*got None"),
    "a vector": (
        lambda: fit(lambda x, z: norm.logpdf(x, z["w"], z["tau"])),
        ValueError,
        r"scalar for ONE draw.*got shape \(3,\); sum over the data",
    ),
    "arguments the other way round": (
        lambda: fit(lambda z, x: log_joint(x, z)),
        ValueError,
        r"latents \{tau.* and x \{x: float32\[3\]\}: .*string index",
    ),
    "one argument": (
        lambda: fit(lambda z: 0.0),
        ValueError,
        r"called as log_joint\(x, z\), but its signature is \(z\)",
    ),
    "theta without model_params": (
        lambda: fit(learned),
        ValueError,
        "its signature is.*theta.*given as model_params",
    ),
    "model_params without theta": (
        lambda: fit(model_params={"a": 1.0}),
        ValueError,
        r"called as log_joint\(x, z, theta\).*leave model_params out",
    ),
    "a latent misspelt": (
        lambda: fit(lambda x, z: z["W"].sum() - z["tau"]),
        ValueError,
        r"looks up 'W', which there is not; the latents are \{tau: float32\[\], w: float32\[3\]\}",
    ),
    "data misspelt": (
        lambda: fit(of_y, x={"obs": X}),
        ValueError,
        r"looks up 'y', which there is not.*x is \{obs: float32\[3\]\}",
    ),
    "an attribute": (
        lambda: fit(lambda x, z: z.w.sum()),
        ValueError,
        r"with latents \{tau: float32\[\].*no attribute 'w'",
    ),
    "a latent forgotten": (
        lambda: fit(lambda x, z: norm.logpdf(z["w"]).sum()),
        ValueError,
        "never reads latent 'tau'.*flat. Remove it.*or add its prior",
    ),
    "no return": (lambda: fit(lambda x, z: None), ValueError, "got 0 arrays; did it return at all"),
    "two values": (
        lambda: fit(lambda x, z: (log_joint(x, z), 1.0)),
        ValueError,
        "must return one scalar, got 2 arrays",
    ),
    "an int": (
        lambda: fit(lambda x, z: (z["w"] > z["tau"]).sum()),
        TypeError,
        "floating-point scalar, got dtype int32",
    ),
    "a bool": (
        lambda: fit(lambda x, z: jnp.all(z["w"] > z["tau"])),
        TypeError,
        "floating-point scalar, got dtype bool",
    ),
    "complex": (
        lambda: fit(lambda x, z: log_joint(x, z) + 1j),
        TypeError,
        "floating-point scalar, got dtype complex64",
    ),
    "a string": (
        lambda: fit(lambda x, z: "a"),
        ValueError,
        "log_joint failed on one draw.*<class 'str'>",
    ),
    "if": (
        lambda: fit(with_if),
        ValueError,
        r"needs the value of a latent.*at test_bad_input.py:\d+ \(`return.*jnp.where",
    ),
    "NumPy": (lambda: fit(with_numpy), ValueError, r"in Python at test_bad_input.py.*jax.numpy"),
    "float()": (
        lambda: fit(lambda x, z: float(z["tau"]) + log_joint(x, z)),
        ValueError,
        r"in Python at test_bad_input.py.*float\(\) or int\(\)",
    ),
    "NaN from the start": (
        lambda: fit(
            lambda x, z: log_joint(x, z) + jnp.log(-1.0 - z["tau"] ** 2),
            init_params=GUIDE.params_at(Z),
            optimizer=optax.sgd(0.1),
        ),
        bbvi.NonFiniteError,
        r"(?s)step 0: the loss is nan.*where  log\(-\d.*negative number.*last good state",
    ),
}
DATA = {
    "of another length": (
        lambda: fit(x=np.ones(5, np.float32)),
        ValueError,
        r"w: float32\[3\]\} and x \{x: float32\[5\]\}: .*incompatible shapes.*\(5,\), \(3,\)",
    ),
    "none": (lambda: fit(x=None), ValueError, r"and x \{\}: .*NoneType"),
    "strings": (
        lambda: fit(x=np.array(["a", "b"])),
        TypeError,
        "leaf 'x' of x must be an array of numbers, got dtype <U1",
    ),
    "objects": (
        lambda: fit(of_y, x={"y": np.array([1, None], object)}),
        TypeError,
        "leaf 'y' of x must be an array of numbers, got dtype object",
    ),
    "dates": (
        lambda: fit(x=np.array(["2020-01-01"], "datetime64[D]")),
        TypeError,
        "must be an array of numbers, got dtype datetime64",
    ),
    "a set": (lambda: fit(x={1.0, 2.0}), TypeError, "array of numbers, got set"),
    "a generator": (
        lambda: fit(x=(i for i in range(3))),
        TypeError,
        r"x must be arrays, got <generator.*bbvi.Loader\(function",
    ),
    "empty": (lambda: fit(x=np.zeros(0)), ValueError, r"data 'x' is empty \(shape \(0,\)\)"),
    "the guide in its place": (
        lambda: bbvi.fit(log_joint, X, GUIDE),
        TypeError,
        r"guide must be a bbvi.Guide such as .*, got array\(\[1",
    ),
}
GUIDES = {
    "a class": (
        lambda: fit(guide=bbvi.MeanField),
        TypeError,
        "guide must be a bbvi.Guide such as.*got <class",
    ),
    "a dict of sites": (
        lambda: fit(guide={"w": bbvi.Normal((3,))}),
        TypeError,
        r"such as bbvi.MeanField\(\{...\}\), or .*, got \{'w': Normal",
    ),
    "a site": (lambda: fit(guide=bbvi.Normal()), TypeError, "such as bbvi.MeanField.*got Normal"),
    "the model in its place": (
        lambda: bbvi.fit(GUIDE, log_joint, X),
        TypeError,
        "log_joint must be a function.*got MeanField",
    ),
    "classes for sites": (
        lambda: bbvi.MeanField({"w": bbvi.Normal}),
        TypeError,
        r"MeanField got <class.*for latent 'w'; expected a site such as bbvi.Normal\(\(3,\)\)",
    ),
    "arrays for sites": (
        lambda: bbvi.MeanField({"w": np.zeros(3)}),
        TypeError,
        r"MeanField got array\(.*for latent 'w'; expected a site",
    ),
    "shapes for sites": (
        lambda: bbvi.MeanField({"w": (3,)}),
        TypeError,
        "MeanField got 3 for latent 'w.0'; expected a site",
    ),
    "a distribution for a site": (
        lambda: bbvi.MeanField({"w": distrax.Normal(0.0, 1.0)}),
        TypeError,
        "MeanField got Array.*expected a site such as bbvi.Normal",
    ),
    "a guide for a site": (
        lambda: bbvi.MeanField({"w": bbvi.MeanField(bbvi.Normal())}),
        TypeError,
        "MeanField got MeanField.*for latent 'w'; expected a site",
    ),
    "names of two kinds": (
        lambda: bbvi.MeanField({1: bbvi.Normal(), "a": bbvi.Normal()}),
        TypeError,
        "names of its sites to be strings, got {1:",
    ),
    "no sites": (lambda: bbvi.MeanField({}), ValueError, r"at least one latent, got \{\}"),
    "full rank of a discrete site": (
        lambda: bbvi.FullRank({"c": bbvi.Bernoulli()}),
        TypeError,
        "FullRank got Bernoulli.*for latent 'c'; expected.*Normal",
    ),
    "rank too large": (
        lambda: bbvi.LowRank({"w": bbvi.Normal((3,))}, rank=5),
        ValueError,
        "rank must be at most 3, the number of entries.*got 5; bbvi.FullRank",
    ),
    "rank of zero": (
        lambda: bbvi.LowRank({"w": bbvi.Normal((3,))}, rank=0),
        ValueError,
        "rank must be an int of at least 1, got 0",
    ),
    "product of a list": (
        lambda: bbvi.Product([bbvi.MeanField({"w": bbvi.Normal()})]),
        ValueError,
        r"Product needs at least two guides, got \(\[",
    ),
    "product of one latent twice": (
        lambda: bbvi.Product(*[bbvi.MeanField({"w": bbvi.Normal()})] * 2),
        ValueError,
        r"latents \['w'\] appear in more than one",
    ),
    "local without rows": (
        lambda: bbvi.Local({"u": bbvi.Normal()}),
        ValueError,
        r"a row of each latent for each datum.*got \{'u': \(\)\}",
    ),
    "placed without a latent": (
        lambda: GUIDE.params_at({"w": np.zeros(3)}),
        ValueError,
        "latents have structure.*names and nesting must match",
    ),
    "placed at another shape": (
        lambda: GUIDE.params_at(Z | {"w": np.zeros(4)}),
        ValueError,
        r"latent 'w' has shape \(4,\), but.*has shape \(3,\)",
    ),
    "placed outside": (
        lambda: GUIDE.params_at(Z | {"tau": -1.0}),
        ValueError,
        "latent 'tau' cannot be placed at -1.0.*finite and in support 'positive'",
    ),
    "placed at NaN": (
        lambda: GUIDE.params_at(Z | {"w": np.full(3, np.nan)}),
        ValueError,
        r"latent 'w' cannot be placed at \[nan nan nan\]",
    ),
    "placed at a string": (
        lambda: GUIDE.params_at(Z | {"w": "zeros"}),
        TypeError,
        "latents must be arrays of numbers, got {'w': 'zeros'",
    ),
    "placed at a third side": (
        lambda: bbvi.MeanField(bbvi.Bernoulli()).params_at(2),
        ValueError,
        "cannot be placed at 2: .*Bernoulli.*ints from 0 to 1",
    ),
    "a negative scale": (
        lambda: GUIDE.params_at(Z, -0.1),
        ValueError,
        "params_at scale must be a positive number, got -0.1",
    ),
    "a scale for each latent": (
        lambda: GUIDE.params_at(Z, {"w": 1.0, "tau": 1.0}),
        ValueError,
        "params_at scale must be a positive number, got {'w'",
    ),
}
SITES = {
    "int shape": (lambda: bbvi.Normal(3), TypeError, r"must be a tuple, got 3; write \(3,\)"),
    "int shape of rows": (lambda: bbvi.Dirichlet(3), TypeError, r"must be a tuple.*write \(3,\)"),
    "float shape": (lambda: bbvi.Normal((3.0,)), ValueError, r"positive ints, got \(3.0,\)"),
    "negative shape": (lambda: bbvi.Normal((-1,)), ValueError, r"positive ints, got \(-1,\)"),
    "empty shape": (lambda: bbvi.Normal((0,)), ValueError, r"positive ints, got \(0,\)"),
    "bool shape": (lambda: bbvi.Normal((True,)), ValueError, r"positive ints, got \(True,\)"),
    "location and scale": (
        lambda: bbvi.Normal(0.0, 1.0),
        TypeError,
        "shape must be a tuple of ints.*got 0.0.*no parameters: those are found by fit",
    ),
    "support by name": (
        lambda: bbvi.Normal((), support="positive"),
        TypeError,
        "support must be one of bbvi.supports, such as bbvi.supports.positive.*got 'positive'",
    ),
    "support not called": (
        lambda: bbvi.Normal((), support=bbvi.supports.interval),
        TypeError,
        r"such as .*interval\(0.0, 1.0\), got <function interval",
    ),
    "a scalar simplex": (
        lambda: bbvi.Normal((), support=bbvi.supports.simplex),
        ValueError,
        r"has shape \(\), but .* 'simplex' needs at least 1 axis",
    ),
    "a simplex of one": (lambda: bbvi.Dirichlet((1,)), ValueError, r"last axis of length >= 2"),
    "a factor that is not square": (
        lambda: bbvi.Normal((2, 3), support=bbvi.supports.cholesky_factor),
        ValueError,
        r"has shape \(2, 3\).*square",
    ),
    "an interval the wrong way": (
        lambda: bbvi.supports.interval(1.0, 0.0),
        ValueError,
        r"lower < upper, got \(1.0, 0.0\)",
    ),
    "a bound by name": (
        lambda: bbvi.supports.greater_than("0"),
        ValueError,
        "needs a finite number as its lower bound, got '0'",
    ),
    "an array of bounds": (
        lambda: bbvi.supports.greater_than(np.zeros(3)),
        ValueError,
        "finite number as its lower bound, got array",
    ),
    "one category": (lambda: bbvi.Categorical(1), ValueError, "num_categories >= 2.*got 1"),
    "shape for categories": (
        lambda: bbvi.Categorical((3,)),
        ValueError,
        r"num_categories >= 2 as an int, got \(3,\)",
    ),
    "no components": (
        lambda: bbvi.NormalMixture(0),
        ValueError,
        "num_components >= 1 as an int, got 0",
    ),
    "degrees of freedom": (
        lambda: bbvi.StudentT(df="5"),
        ValueError,
        "StudentT df must be a positive number, got '5'",
    ),
}
RUNS = {
    "int key": (
        lambda: fit(key=0),
        TypeError,
        r"one typed key, got 0; make it with jax.random.key",
    ),
    "legacy key": (
        lambda: fit(key=jax.random.PRNGKey(0)),
        TypeError,
        r"got uint32\[2\] array.*wrap_key_data",
    ),
    "many keys": (
        lambda: fit(key=jax.random.split(jax.random.key(1), 2)),
        TypeError,
        r"one typed key, got key<fry>\[2\] array",
    ),
    "generator for key": (
        lambda: fit(key=np.random.default_rng(0)),
        TypeError,
        "one typed key, got Generator",
    ),
    "no steps": (lambda: fit(num_steps=0), ValueError, "num_steps must be an int >= 1, got 0"),
    "float steps": (lambda: fit(num_steps=1e3), ValueError, "num_steps .* int >= 1, got 1000.0"),
    "bool steps": (lambda: fit(num_steps=True), ValueError, "num_steps .* int >= 1, got True"),
    "no restarts": (lambda: fit(num_restarts=0), ValueError, "num_restarts must be an int >= 1"),
    "batch above N": (
        lambda: fit(batch_size=10),
        ValueError,
        "batch_size must be 2 to 3, the rows of x, got 10; leave it out",
    ),
    "float batch": (lambda: fit(batch_size=1.5), ValueError, "batch_size must be an int.*got 1.5"),
    "batch without x": (
        lambda: fit(lambda x, z: log_joint(1.0, z), x=None, batch_size=2),
        ValueError,
        r"x holds no rows to take batches of: \{\}",
    ),
    "batch of unequal leaves": (
        lambda: fit(of_y, x=Y | {"b": np.ones(4)}, batch_size=2),
        ValueError,
        r"share one leading axis.*\{'b': 4, 'y': 3\}|share one leading axis.*\{'y': 3, 'b': 4\}",
    ),
    "batch of what is no sum": (
        lambda: fit(lambda x, z: jnp.log(x.sum()) * z["w"].sum() - z["tau"], batch_size=2),
        ValueError,
        "does not have entries for each row of x.*write it as a sum",
    ),
    "epochs without batches": (
        lambda: fit(num_steps=None, num_epochs=3),
        ValueError,
        "num_epochs counts passes over batches of the data: give batch_size",
    ),
    "epochs and steps": (
        lambda: fit(num_epochs=3, batch_size=2),
        ValueError,
        "num_steps=1 and num_epochs=3 both say how long",
    ),
    "optimizer not called": (
        lambda: fit(optimizer=optax.adam),
        TypeError,
        r"such as optax.adam\(1e-2\), got <function adam",
    ),
    "optimizer by name": (lambda: fit(optimizer="adam"), TypeError, "such as optax.*got 'adam'"),
    "rate for optimizer": (lambda: fit(optimizer=0.01), TypeError, "such as optax.*got 0.01"),
    "schedule for optimizer": (
        lambda: fit(optimizer=optax.cosine_decay_schedule(0.1, 100)),
        TypeError,
        r"such as optax.adam\(1e-2\), got <function cosine",
    ),
    "rate as a string": (
        lambda: fit(optimizer=optax.adam("0.01")),
        TypeError,
        "optimizer fails on the parameters.*a learning rate must be a number",
    ),
    "natural gradient without a guide": (
        lambda: bbvi.natural_gradient(0.1),
        TypeError,
        "natural_gradient needs a MeanField.*got 0.1; use an optax",
    ),
    "step size as a string": (
        lambda: bbvi.natural_gradient(GUIDE, "0.1"),
        ValueError,
        "natural_gradient step_size must be a positive number, got '0.1'",
    ),
    "alternating no steps": (
        lambda: bbvi.alternating(
            optax.sgd(0.1), optax.sgd(0.1), num_guide_steps=0, num_model_steps=1
        ),
        ValueError,
        "num_guide_steps must be an int >= 1, got 0",
    ),
    "stopping not called": (
        lambda: fit(stopping=bbvi.Plateau),
        TypeError,
        "must be a bbvi.Plateau",
    ),
    "tolerance": (
        lambda: bbvi.Plateau("small"),
        ValueError,
        "Plateau tolerance must be a positive number, got 'small'",
    ),
    "nonfinite": (
        lambda: fit(nonfinite="ignore"),
        ValueError,
        r"one of \('raise', 'skip', 'stop'\), got 'ignore'",
    ),
    "trace_fn by name": (
        lambda: fit(trace_fn="loss"),
        TypeError,
        "trace_fn must be a function of StepInfo, got 'loss'",
    ),
    "one callback": (
        lambda: fit(callbacks=lambda progress: None),
        TypeError,
        "callbacks must be a sequence of functions, got <function",
    ),
    "checkpoint as an int": (
        lambda: fit(checkpoint=3),
        TypeError,
        "a folder's name or a bbvi.Checkpoint, got 3",
    ),
    "checkpoint nowhere": (
        lambda: bbvi.Checkpoint(None),
        TypeError,
        "directory must name a folder, got None",
    ),
    "checkpoint in strings": (
        lambda: bbvi.Checkpoint("runs", seconds="60"),
        ValueError,
        "seconds must be a number >= 0, got '60'",
    ),
    "half a checkpoint": (
        lambda: bbvi.Checkpoint("runs", keep=2.5),
        ValueError,
        "keep must be an int >= 1, got 2.5",
    ),
}
STARTS = {
    "latents for init_params": (
        lambda: fit(init_params=Z),
        ValueError,
        r"init_params do not fit the guide: got \{'tau': \(\).*guide.params_at\(z, scale\)",
    ),
    "of another guide": (
        lambda: fit(init_params=bbvi.MeanField({"w": bbvi.Normal((5,))}).init(key(), None)),
        ValueError,
        r"do not fit the guide: got \{'normal': \(2, 5\)\}, expected \{'normal': \(2, 4\)\}",
    ),
    "a state for init_params": (
        lambda: fit(init_params=result().state),
        ValueError,
        r"init_params do not fit the guide: got \{'step'",
    ),
    "a result for init_state": (
        lambda: fit(init_state=result()),
        TypeError,
        "must be the .state of a result, result.state, got a FitResult",
    ),
    "a state of another guide": (
        lambda: fit(
            lambda x, z: norm.logpdf(z).sum() + x.sum(),
            bbvi.MeanField(bbvi.Normal((5,))),
            init_state=result().state,
        ),
        ValueError,
        "init_state does not fit this call: guide.*must be those of the run it came from",
    ),
    "two starts": (
        lambda: fit(init_state=result().state, init_params=GUIDE.params_at(Z)),
        ValueError,
        "init_state and init_params both say where to start: give one",
    ),
    "theta of ints": (
        lambda: fit(learned, model_params={"a": 1}),
        TypeError,
        "model_params parameter 'a' has dtype int32; only floating-point",
    ),
    "theta of strings": (
        lambda: fit(learned, model_params={"a": "one"}),
        TypeError,
        "arrays of real numbers, got 'one' for 'a'",
    ),
}
ESTIMATORS = {
    "a class": (
        lambda: fit(estimator=bbvi.Reparameterization),
        TypeError,
        r"such as bbvi.Reparameterization\(\), a dict.*got <class",
    ),
    "by name": (lambda: fit(estimator="reparameterization"), TypeError, "must be a bbvi.Estimator"),
    "a list": (lambda: fit(estimator=[bbvi.ScoreFunction()]), TypeError, r"a dict of them.*got \["),
    "pathwise, of a discrete site": (
        lambda: fit(coins, COINS, estimator=bbvi.Reparameterization()),
        ValueError,
        r"site 'c' \(Bernoulli\) is not reparameterizable.*silently zero. Use ScoreFunction",
    ),
    "a site left out": (
        lambda: fit(coins, COINS, estimator={"w": bbvi.Reparameterization()}),
        ValueError,
        r"names sites \['w'\], the guide's are \['c', 'w'\]: name each",
    ),
    "a site misspelt": (
        lambda: fit(
            *(coins, COINS),
            estimator={"w": bbvi.Reparameterization(8), "C": bbvi.ScoreFunction(8)},
        ),
        ValueError,
        r"names sites \['C', 'w'\], the guide's are \['c', 'w'\]",
    ),
    "a class for a site": (
        lambda: fit(coins, COINS, estimator={"c": bbvi.ScoreFunction}),
        TypeError,
        "site 'c': PerSite combines .*, got <class",
    ),
    "sites as a list": (
        lambda: bbvi.PerSite([bbvi.Reparameterization()]),
        TypeError,
        "PerSite takes a dict of estimators by site",
    ),
    "discrete, of a normal site": (
        lambda: fit(estimator=bbvi.DisArm()),
        ValueError,
        r"DisArm is for discrete latents, but site 'tau' \(Normal\).*bbvi.Mixed",
    ),
    "doubly reparameterized ELBO": (
        lambda: fit(estimator=bbvi.DoublyReparameterized()),
        ValueError,
        r"is for bbvi.Iwae, .*got Elbo\(\); leave estimator unset",
    ),
    "score function of a bound of several": (
        lambda: fit(estimator=bbvi.ScoreFunction(), objective=bbvi.Iwae(8)),
        ValueError,
        r"bbvi.Elbo\(\) only, got Iwae\(group_size=8\)",
    ),
    "fewer draws than a group": (
        lambda: fit(estimator=bbvi.DoublyReparameterized(4), objective=bbvi.Iwae(8)),
        ValueError,
        "groups of 8, but DoublyReparameterized draws num_samples=4: use a multiple",
    ),
    "no samples": (
        lambda: bbvi.Reparameterization(0),
        ValueError,
        "num_samples must be an int >= 1, got 0",
    ),
    "samples as a string": (lambda: bbvi.ScoreFunction("32"), ValueError, "int >= 1, got '32'"),
    "leaving one of one out": (
        lambda: bbvi.ScoreFunction(1),
        ValueError,
        "LeaveOneOut needs num_samples >= 2, got 1; draw more, or",
    ),
    "baseline not called": (
        lambda: bbvi.ScoreFunction(baseline=bbvi.LeaveOneOut),
        TypeError,
        "baseline must be a bbvi.Baseline, got <class",
    ),
    "signal misspelt": (
        lambda: bbvi.ScoreFunction(signal="blankets"),
        ValueError,
        r"signal must be one of \('adaptive', .*got 'blankets'",
    ),
    "entropy misspelt": (
        lambda: bbvi.Reparameterization(entropy="exact"),
        ValueError,
        r"entropy must be one of \('closed_form', .*got 'exact'",
    ),
    "an odd number in pairs": (
        lambda: bbvi.Reparameterization(7, sampling=bbvi.Antithetic()),
        ValueError,
        "come in pairs: num_samples must be even, got 7",
    ),
    "a temperature of zero": (
        lambda: bbvi.GumbelSoftmax(temperature=0.0),
        ValueError,
        "temperature must be a positive number, got 0.0",
    ),
    "decay": (lambda: bbvi.MovingAverage(1.5), ValueError, r"decay must be in \[0, 1\), got 1.5"),
    "a mean misspelt": (lambda: bbvi.Vimco(mean="harmonic"), ValueError, "one of.*got 'harmonic'"),
    "sites of an enumeration": (
        lambda: bbvi.Enumeration(sites=3),
        TypeError,
        "sites must be names of sites, got 3",
    ),
    "mixed the other way round": (
        lambda: bbvi.Mixed(bbvi.DisArm(), bbvi.Reparameterization()),
        TypeError,
        "takes a bbvi.Reparameterization for continuous sites, got DisArm",
    ),
    "a network by name": (
        lambda: bbvi.LearnedBaseline(network="mlp"),
        TypeError,
        r"must have init\(key, x\).*got 'mlp'",
    ),
}
OBJECTIVES = {
    "a class": (
        lambda: fit(objective=bbvi.Elbo),
        TypeError,
        "must be a bbvi.Objective, got <class",
    ),
    "by name": (lambda: fit(objective="elbo"), TypeError, "must be a bbvi.Objective, got 'elbo'"),
    "no draws": (lambda: bbvi.Iwae(0), ValueError, "group_size must be an int >= 1, got 0"),
    "order one": (lambda: bbvi.Renyi(1.0), ValueError, r"alpha=1 is the ELBO: use Elbo\(\)"),
    "order as a string": (lambda: bbvi.Renyi("0.5"), ValueError, "finite number, got '0.5'"),
    "chi of order one": (lambda: bbvi.Chi(1.0), ValueError, "a number above 1, got 1.0"),
    "a constant schedule": (
        lambda: bbvi.Tempered(0.5),
        TypeError,
        "schedule must be a function of the step.*got 0.5",
    ),
    "a schedule that does not end": (
        lambda: fit(objective=bbvi.Tempered(lambda t: 0.5)),
        ValueError,
        "must end at 1, got 0.5 at the last step",
    ),
}
LOADERS = {
    "no batches": (lambda: bbvi.Loader(3, 10), TypeError, "can be iterated over.*got 3"),
    "one row": (lambda: bbvi.Loader([X], 1), ValueError, "num_data must be an int >= 2, got 1"),
    "used up": (
        lambda: fit(x=bbvi.Loader(iter([]), 10)),
        ValueError,
        "no batch 0: iterating over list_iterator gave none",
    ),
    "a batch size too": (
        lambda: fit(x=bbvi.Loader([X], 10), batch_size=3),
        ValueError,
        "batch_size=3, but a Loader's batches.*leave it out",
    ),
    "strings": (
        lambda: fit(x=bbvi.Loader([np.array(["a", "b"])], 10)),
        TypeError,
        "must be an array of numbers, got dtype <U1",
    ),
    "rows misspelt": (
        lambda: fit(of_y, x=bbvi.Loader([Y], 10, rows="i")),
        ValueError,
        r"rows='i' must name a leaf.*holds \{y: float32\[3\]\}",
    ),
    "a function of the epoch": (
        lambda: fit(x=bbvi.Loader(lambda epoch: iter([X]), 9)),
        TypeError,
        "a function of no arguments.*'epoch'",
    ),
}
CALLS = {
    "make_step with a dict": (
        lambda: bbvi.make_step(log_joint, {"w": bbvi.Normal()}),
        TypeError,
        "guide must be a bbvi.Guide",
    ),
    "make_step with an optimizer not called": (
        lambda: bbvi.make_step(log_joint, GUIDE, optimizer=optax.adam),
        TypeError,
        "must be an optax.GradientTransformation.*got <function adam",
    ),
    "init with an int": (lambda: step()[0](0, X), TypeError, "must be one typed key, got 0"),
    "init without x": (lambda: step()[0](key()), ValueError, r"and x \{\}: .*NoneType"),
    "step the other way round": (
        lambda: step()[1](X, result().state),
        TypeError,
        r"step takes \(state, x\).*got a ndarray",
    ),
    "mode of coins": (
        lambda: bbvi.find_mode(coins, COINS, X),
        TypeError,
        "whose sites are all bbvi.Normal.*got MeanField.*Bernoulli",
    ),
    "mode by float steps": (
        lambda: bbvi.find_mode(log_joint, GUIDE, X, num_steps=10.0),
        ValueError,
        "num_steps must be an int >= 1, got 10.0",
    ),
    "mode of strings": (
        lambda: bbvi.find_mode(log_joint, GUIDE, np.array(["a"])),
        TypeError,
        "leaf 'x' of x must be an array of numbers, got dtype <U1",
    ),
    "compare classes": (
        lambda: compare(estimators=[bbvi.Reparameterization]),
        TypeError,
        "must be a bbvi.Estimator.*got <class",
    ),
    "compare one": (
        lambda: compare(estimators=bbvi.Reparameterization()),
        TypeError,
        "estimators must be a list or a dict of them, got Rep",
    ),
    "compare none": (
        lambda: compare(estimators=[]),
        ValueError,
        "estimators is empty; leave it out",
    ),
    "compare few": (
        lambda: compare(num_replicates=1),
        ValueError,
        "num_replicates must be an int >= 100, got 1",
    ),
    "compare with truth by name": (
        lambda: compare(truth="exact"),
        TypeError,
        "truth must be an unbiased bbvi.Estimator, or a function.*got 'exact'",
    ),
    "compare at numbers": (
        lambda: compare(points={"a": 1.0}),
        TypeError,
        r"points must hold bbvi.Params by name.*got \{'a': 1.0\}",
    ),
    "choose by an int": (lambda: choose(key=0), TypeError, "must be one typed key, got 0"),
    "choose after less than no steps": (
        lambda: choose(num_steps=-1),
        ValueError,
        "num_steps must be an int >= 0, got -1",
    ),
    "choose by one": (
        lambda: choose(num_replicates=1),
        ValueError,
        "num_replicates must be an int >= 2, got 1",
    ),
    "explain a vector": (
        lambda: bbvi.explain(lambda x, z: z["w"], X, GUIDE),
        ValueError,
        r"scalar for ONE draw.*got shape \(3,\)",
    ),
    "explain the other way round": (
        lambda: bbvi.explain(log_joint, GUIDE, X),
        TypeError,
        "leaf 'x' of x must be an array of numbers, got MeanField",
    ),
    "explain a dict of sites": (
        lambda: bbvi.explain(log_joint, X, {"w": bbvi.Normal((3,))}),
        TypeError,
        "one draw of the latents, its shapes, or a guide.*got Normal.*for 'w'",
    ),
    "explain a class": (
        lambda: bbvi.explain(log_joint, X, bbvi.MeanField),
        TypeError,
        "or a guide such as.*got <class",
    ),
    "check no entries": (
        lambda: bbvi.check_blankets(log_joint, X, GUIDE, max_entries=0),
        ValueError,
        "max_entries must be at least 1, got 0",
    ),
    "sample with an int": (lambda: result().sample(0, 10), TypeError, "one typed key, got 0"),
    "sample the other way round": (
        lambda: result().sample(10, key()),
        TypeError,
        "must be one typed key, got 10",
    ),
    "sample none": (lambda: result().sample(key(), 0), ValueError, "int >= 1, got 0"),
    "log_prob of half a draw": (
        lambda: result().log_prob({"w": np.zeros(3)}),
        ValueError,
        "latents have structure.*names and nesting must match",
    ),
    "evidence by a guide alone": (
        lambda: result().log_evidence(key(), 100, proposal=GUIDE),
        TypeError,
        r"a guide and its parameters, \(guide, guide.params_at\(z, scale\)\), got Mean",
    ),
    "a table of numbers": (
        lambda: bbvi.format_summary({"a": 1.0}),
        TypeError,
        "takes what FitResult.summary returned, got {'a'",
    ),
    "k-hat of few": (
        lambda: bbvi.diagnostics.psis_khat(np.zeros(9)),
        ValueError,
        "at least 100 draws, got 9",
    ),
}
FACTORS = {
    "a dict": (
        lambda: bbvi.FactorizedLogJoint({"a": 1.0}),
        TypeError,
        r"terms must be one function \(x, z\) -> \{name: array\}, got",
    ),
    "a list": (
        lambda: fit(bbvi.FactorizedLogJoint(lambda x, z: [log_joint(x, z)])),
        ValueError,
        r"must return a dict of arrays by name, got \[",
    ),
    "a scope of no term": (
        lambda: fit(factorized(scopes={"al": ("w",)})),
        ValueError,
        r"there is no term 'al'; the terms are \['all'\]",
    ),
    "a scope of no latent": (
        lambda: fit(factorized(scopes={"all": ("v",)})),
        ValueError,
        r"names \['v'\], which there are not; the latents are \['tau', 'w'\]",
    ),
    "a scope too narrow": (
        lambda: fit(factorized(scopes={"all": ("w",)})),
        ValueError,
        "reads latent 'tau', which its scope.*silently be biased. Add it",
    ),
    "a name for names": (
        lambda: factorized(data_terms="all"),
        TypeError,
        "data_terms must be a tuple of names, got 'all': write a comma",
    ),
    "scaled by nothing": (
        lambda: bbvi.scale_data_terms(log_joint, num_data=0),
        ValueError,
        "num_data, as an int >= 1, or neither; got .* and 0",
    ),
    "scaled batch by name": (
        lambda: bbvi.scale_data_terms(log_joint, num_data=30, batch="y"),
        TypeError,
        "batch must be a tuple of names, got 'y': write a comma",
    ),
    "scaled batch misspelt": (
        lambda: fit(bbvi.scale_data_terms(of_y, num_data=30, batch=("Y",)), x=Y),
        ValueError,
        r"batch names \['Y'\], but the leaves of x are \['y'\]",
    ),
    "scaled number": (
        lambda: bbvi.scale_data_terms(3, num_data=30),
        TypeError,
        "log_joint must be a function, got 3",
    ),
}
NETWORKS = {
    "one width": (
        lambda: bbvi.networks.MLP(32),
        TypeError,
        r"widths must be a tuple such as \(200, 200\), got 32",
    ),
    "no width": (lambda: bbvi.networks.MLP((0,)), ValueError, r"positive ints, got \(0,\)"),
    "activation by name": (
        lambda: bbvi.networks.MLP((8,), activation="relu"),
        TypeError,
        "activation must be a function such as nn.relu, got 'relu'",
    ),
    "fewer strides than layers": (
        lambda: bbvi.networks.Convolutional((8, 8), (2,)),
        ValueError,
        "2 layers, so it needs as many strides",
    ),
    "a class": (
        lambda: bbvi.Amortized({"u": bbvi.Normal((3,))}, bbvi.networks.MLP),
        TypeError,
        "as an instance of a flax.linen module has, got <class",
    ),
    "a function": (
        lambda: bbvi.Amortized({"u": bbvi.Normal((3,))}, lambda x: x),
        TypeError,
        r"must have init\(key, x\).*got <function",
    ),
    "the other way round": (
        lambda: bbvi.Amortized(MLP, {"u": bbvi.Normal((3,))}),
        TypeError,
        r"(?s)Amortized got MLP\(.*expected a site such as",
    ),
    "refined backwards": (
        lambda: bbvi.SemiAmortized({"u": bbvi.Normal((3,))}, MLP, num_steps=-1),
        ValueError,
        "num_steps must be an int >= 1, got -1",
    ),
    "refined gammas": (
        lambda: bbvi.SemiAmortized({"u": bbvi.Gamma((3,))}, MLP),
        ValueError,
        "site 'u' is Gamma.*use Amortized",
    ),
}
TABLE = {
    f"{group}: {name}": entry
    for group, entries in {
        "log_joint": MODELS,
        "x": DATA,
        "guide": GUIDES,
        "site": SITES,
        "fit": RUNS,
        "start": STARTS,
        "estimator": ESTIMATORS,
        "objective": OBJECTIVES,
        "loader": LOADERS,
        "call": CALLS,
        "factors": FACTORS,
        "network": NETWORKS,
    }.items()
    for name, entry in entries.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_the_error_says_what_was_got_and_what_to_do(name):
    mistake, error, message = TABLE[name]
    with pytest.raises(error, match=message):
        mistake()
