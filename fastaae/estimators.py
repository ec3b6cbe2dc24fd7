"""Estimators of scikit-learn (1.6 or newer) over train(): a transformer, a classifier, a detector and a clusterer.

X is [n, D], finite numbers in any units; networks see its columns standardized. A fit leaves no files and says nothing
but what a run warns of. What it has learned is kept in float64, and pickled as the bytes of a model's file. All raise
ValueError where X, y or a parameter is wrong, NotFittedError before fit, and in fit what train() raises.
"""

from __future__ import annotations

import tempfile
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import base
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, check_random_state, column_or_1d, validate_data

from .config import Config
from .model import Model, load
from .run.training import train
from .window import ParzenWindow


@dataclass(eq=False, repr=False)
class Autoencoder(base.BaseEstimator):
    """What the estimators share.

    Args:
        hidden, style_dim, batch_size, lr_reconstruction, lr_adversarial: as in Config; a batch is at most X.
        epochs: passes over X; None: as many as make 2,000 steps.
        config: further fields of Config by name, such as {"device": "cpu"}.
        random_state: a seed, a np.random.RandomState, or None for NumPy's global one.

    After fit, model_ is the fastaae.Model.
    """

    _: KW_ONLY
    hidden: tuple[int, ...] = (64, 64)
    style_dim: int = 2
    epochs: int | None = None
    batch_size: int = 100
    lr_reconstruction: float = 1e-3
    lr_adversarial: float = 3e-4
    config: dict[str, Any] | None = None
    random_state: Any = None

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train on X; y is ignored."""
        return self._fit(self._rows(X, reset=True))

    def _rows(self, X: Any, reset: bool = False) -> Any:
        return validate_data(self, X, reset=reset, dtype=(np.float64, np.float32), ensure_min_samples=1 + reset)

    def _made(self, method: Any, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return method(self.model_, self._rows(X))

    def _fit(self, X: np.ndarray, y: np.ndarray | None = None, **fields: Any) -> Any:
        own = {name: v for name, v in self.get_params(deep=False).items() if hasattr(Config, name)}
        seed, batch = self.random_state, min(self.batch_size, len(X))
        own["seed"] = seed if isinstance(seed, int | np.integer) else check_random_state(seed).randint(2**31 - 1)
        if self.epochs is None:
            own["epochs"] = -(-2000 // max(1, len(X) // max(1, batch)))
        own |= {"batch_size": batch, "checkpoint_every": own["epochs"], "scale": "standard", "n_validation": 0}
        with tempfile.TemporaryDirectory() as folder:
            cfg = Config(**{**own, **fields, **(self.config or {}), "out_dir": folder})
            m = train(cfg, X if y is None else (X, y), progress=False).model
        parts: Any = (part and part.mapped(lambda t: t.double()) for part in (m.encoder, m.decoder, m.heads, m.scale))
        self.model_ = Model(m.config, m.shape, m.n_classes, *parts, known=m.known)  # one row as among many
        self._n_features_out = m.config.style_dim
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {**super().__getstate__()}
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                self.model_.save(path := Path(folder, "model"))
                state["model_"] = path.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                (path := Path(folder, "model")).write_bytes(state["model_"])
                state = {**state, "model_": load(path)}
        super().__setstate__(state)


@dataclass(eq=False, repr=False)
class AAETransformer(base.ClassNamePrefixFeaturesOutMixin, base.TransformerMixin, Autoencoder):
    """Codes of examples, about N(0, 5² I), and examples of codes. Parameters are Autoencoder's."""

    def transform(self, X: Any) -> np.ndarray:
        """Codes [n, style_dim] of X, in its precision."""
        return self._made(lambda m, X: m.encode(X).astype(X.dtype), X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Examples, float64 [n, D], of codes X [n, style_dim]."""
        check_is_fitted(self)
        return self.model_.decode(check_array(X, dtype="float64"))

    def score_samples(self, X: Any) -> np.ndarray:
        """Minus the reconstruction error of each row, float64 [n], of standardized columns: half a sum of squares."""
        return -self._made(Model.reconstruction_error, X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of score_samples; y is ignored."""
        return float(self.score_samples(X).mean())


@dataclass(eq=False, repr=False)
class AAEClassifier(base.ClassifierMixin, Autoencoder):
    """A semi-supervised classifier. Parameters are Autoencoder's, and Config's lr_classification and label_weights.
    After fit, classes_ are the K classes, sorted."""

    lr_classification: float = 1e-3
    label_weights: str | tuple[float, ...] = "data"

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train on X and labels y [n]: -1 and None are none, but beside a single other label -1 is a class."""
        X, y = self._rows(X, reset=True), column_or_1d(y, warn=True)
        known = np.array([label is not None and label != -1 for label in y.tolist()])
        known |= (y == -1) & (len({*y[known].tolist()}) == 1)
        check_classification_targets(y[known])
        self.classes_, codes = np.unique(y[known], return_inverse=True)
        y = np.full(len(y), -1)
        y[known] = codes
        return self._fit(X, y, task="semi_supervised")

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, float64 [n, K], in the order of classes_."""
        return self._made(Model.predict_proba, X)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable classes [n]."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]


@dataclass(eq=False, repr=False)
class AAEDetector(base.OutlierMixin, Autoencoder):
    """A detector of anomalies. Parameters are Autoencoder's, and contamination, the share of X in (0, 0.5] that predict
    takes for anomalies. After fit, density_ is the ParzenWindow of the codes of X, offset_ where anomalies begin."""

    contamination: float = 0.1

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train on X, with or without anomalies; y is ignored."""
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"contamination={self.contamination}: expected a number in (0, 0.5]")
        z = self._fit(rows := self._rows(X, reset=True)).model_.encode(rows)
        scott = z.std(0).mean() * len(z) ** (-1 / (z.shape[1] + 4))
        self.density_ = ParzenWindow(max(scott, 1e-6)).fit(z)
        self.offset_ = float(np.percentile(self.score_samples(X), 100 * self.contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of each row, float64 [n], in nats but for a constant: of its code by an exact Parzen window, and
        of its standardized columns by a Gaussian of variance 1 around their reconstruction. Anomalies score low."""
        return self._made(lambda m, X: self.density_.score_samples(m.encode(X)) - m.reconstruction_error(X), X)

    def decision_function(self, X: Any) -> np.ndarray:
        """score_samples less offset_: below 0 for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """-1 for anomalies, 1 for others, [n]."""
        return np.where(self.decision_function(X) < 0, -1, 1)


@dataclass(eq=False, repr=False)
class AAEClusterer(base.ClusterMixin, Autoencoder):
    """Clusters. Parameters are Autoencoder's, and n_clusters, how many there are at most. After fit, labels_ [n] are
    those of X, from 0 on."""

    n_clusters: int = 8

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train on X; y is ignored."""
        k = self.n_clusters
        self._fit(rows := self._rows(X, reset=True), task="clustering", n_clusters=2 if k == 1 else k)
        self._used = np.unique(self.model_.predict(rows))[:k]
        self.labels_ = self.predict(X)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable of the clusters in labels_, [n]."""
        return self._made(lambda m, X: m.predict_proba(X)[:, self._used].argmax(1), X)
