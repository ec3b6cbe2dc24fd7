"""Estimators: scikit-learn's own checks, its tools around them, and what its checks leave out."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import fastaae
from fastaae.estimators import AAEClassifier, AAEClusterer, AAEDetector, AAETransformer

RNG = np.random.default_rng(0)
X = RNG.normal([170, 7, 0.1], [10, 2, 0.02], (60, 3))
Y = np.arange(60) % 3
FEW = {"hidden": (16,), "epochs": 5}
CHECKED = {  # a step or two where nothing has to be learned
    "AAETransformer": AAETransformer(**FEW),
    "AAEDetector": AAEDetector(**FEW),
    "AAEClassifier": AAEClassifier(hidden=(16,), epochs=6, batch_size=20, lr_classification=5e-2),
    "AAEClusterer": AAEClusterer(hidden=(16,), epochs=12, batch_size=10, lr_reconstruction=2e-2, lr_adversarial=5e-3,
                                 config={"init_std": 0.5}),
}  # fmt: skip
ALL = {
    "AAETransformer": AAETransformer(random_state=0, **FEW),
    "AAEDetector": AAEDetector(random_state=0, **FEW),
    "AAEClassifier": AAEClassifier(random_state=0, **FEW),
    "AAEClusterer": AAEClusterer(n_clusters=3, random_state=0, **FEW),
}
METHODS = ["transform", "score_samples", "decision_function", "predict_proba", "predict"]

WITH_ARRAY_API = """
from sklearn.utils.estimator_checks import check_estimator
from test_estimators import CHECKED

for name, estimator in CHECKED.items():
    for result in check_estimator(estimator, on_skip=None):
        print(name, result["status"], result["check_name"])
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, which stays empty."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.lexists("runs")


def made(estimator, x=X):
    """What each of its methods makes of x."""
    return {name: getattr(estimator, name)(x) for name in METHODS if hasattr(estimator, name)}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_scikit_learns_checks_pass():
    results = check_estimator(CHECKED["AAETransformer"], on_skip=None)  # raises at the first that fails
    status = [r["status"] for r in results]
    assert set(status) <= {"passed", "skipped"} and status.count("passed") > 40


def test_they_pass_with_the_array_api_none_skipped():
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    env = {**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", WITH_ARRAY_API], env=env, capture_output=True, text=True, timeout=300)
    results = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    for name in CHECKED:
        status = [status for found, status, _ in results if found == name]
        assert set(status) == {"passed"} and len(status) > 40, done.stdout


@pytest.mark.parametrize("name", ALL)
def test_tables_of_pandas_are_arrays_with_names(name):
    table = pd.DataFrame(X, columns=["height", "shoes", "risk"])
    ours, theirs = clone(ALL[name]).fit(table, pd.Series(Y)), clone(ALL[name]).fit(X, Y)
    assert [*ours.feature_names_in_] == ["height", "shoes", "risk"] and ours.n_features_in_ == 3
    assert same(made(ours, table), made(theirs))
    with pytest.raises(ValueError, match="feature names"):
        made(ours, table[["shoes", "risk", "height"]])


@pytest.mark.parametrize("name", ALL)
def test_what_is_pickled_is_a_models_file(name, tmp_path):
    fitted = clone(ALL[name]).fit(X, Y)
    content = pickle.dumps(fitted)
    joblib.dump(fitted, tmp_path / "e")
    assert b'"sha256"' in content and b"torch" not in content
    for again in (pickle.loads(content), joblib.load(tmp_path / "e")):
        assert same(made(again), made(fitted)) and again.get_params() == fitted.get_params()
    assert pickle.loads(pickle.dumps(clone(fitted))).get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        made(clone(fitted))
    with pytest.raises(fastaae.CheckpointError, match="SHA-256 differs"):
        pickle.loads(content.replace(b'"style_dim', b'"stile_dim').replace(b'\\"style_dim', b'\\"stile_dim'))


@pytest.mark.parametrize("name", ALL)
def test_a_seed_says_it_all_and_rows_are_as_alone(name):
    a, b, other = (clone(ALL[name]).set_params(random_state=s).fit(X, Y) for s in (1, np.int64(1), 2))
    assert same(made(a), made(b)) and a.model_.config.seed == 1
    assert not np.array_equal(a.model_.encode(X), other.model_.encode(X))
    for key, whole in made(a).items():
        rows = np.concatenate([getattr(a, key)(row[None]) for row in X])
        np.testing.assert_allclose(rows, whole, rtol=1e-9, atol=1e-9)
    drawn = [clone(a).set_params(random_state=np.random.RandomState(4)).fit(X, Y).model_.config.seed for _ in range(2)]
    assert drawn[0] == drawn[1] != 4


def test_runs_of_jobs_and_threads():
    grid = {"aaetransformer__style_dim": [1, 2], "aaetransformer__lr_reconstruction": [1e-3, 1e-2]}
    pipeline = make_pipeline(StandardScaler(), AAETransformer(random_state=0, **FEW))
    one, two = (GridSearchCV(pipeline, grid, cv=2, n_jobs=n).fit(X) for n in (None, 2))
    scores = one.cv_results_["mean_test_score"]
    assert len(set(scores)) == 4 and np.array_equal(scores, two.cv_results_["mean_test_score"])
    found = {}
    threads = [
        threading.Thread(target=lambda s=s: found.update({s: AAETransformer(random_state=s, **FEW).fit_transform(X)}))
        for s in range(2)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for s in range(2):
        np.testing.assert_array_equal(found[s], AAETransformer(random_state=s, **FEW).fit_transform(X))


def test_codes_and_examples():
    t = AAETransformer(style_dim=2, hidden=(32,), epochs=300, lr_reconstruction=1e-2, random_state=0).fit(X)
    z = t.transform(X)
    assert z.shape == (60, 2) and z.dtype == np.float64 and t.transform(X.astype(np.float32)).dtype == np.float32
    back = t.inverse_transform(z)
    error = np.square((back - X) / X.std(0)).sum(1) / 2
    np.testing.assert_allclose(t.score_samples(X), -error, rtol=1e-6)
    assert t.score(X) == pytest.approx(-error.mean(), rel=1e-6) and t.score(X) > -0.8  # of the mean: -1.5
    assert [*t.get_feature_names_out()] == ["aaetransformer0", "aaetransformer1"]
    assert t.set_output(transform="pandas").transform(X).shape == (60, 2)
    np.testing.assert_array_equal(t.model_.encode(X), z)
    with pytest.raises(ValueError, match=r"expected \[N, 2\]"):
        t.inverse_transform(X)


def test_rows_in_other_units_are_warned_of():
    m = AAETransformer(epochs=1).fit(X)
    for X_new in (X, X[:1], X + X.std(0)):
        m.transform(X_new)
    with pytest.warns(UserWarning, match=r"^x is \d+ times as far out as the training data: give it in their units$"):
        m.transform(1000 * X)


@pytest.mark.parametrize("kind", [AAETransformer, AAEClassifier, AAEDetector, AAEClusterer])
def test_an_unknown_parameter_is_refused_in_the_name_of_the_estimator(kind):
    with pytest.raises(TypeError, match=rf"^{kind.__name__}.__init__\(\) got an unexpected keyword argument 'hiden'"):
        kind(hiden=(8,))


CLASSIFIER = AAEClassifier(hidden=(32,), epochs=150, batch_size=30, lr_classification=1e-2, random_state=0)


@pytest.mark.filterwarnings("ignore:label_kept")  # of samples, which nobody draws here
def test_few_labels_teach_classes():
    x, y = load_iris(return_X_y=True)
    some = np.where(np.arange(150) % 5 == 0, y, -1)
    c = clone(CLASSIFIER).fit(x, some)
    assert [*c.classes_] == [0, 1, 2] and c.score(x, y) > 0.85
    words = np.array(["setosa", "versicolor", "virginica"], object)[y]
    missing = [-1, None]
    words[some < 0] = [missing[k % 2] for k in range((some < 0).sum())]
    w = clone(CLASSIFIER).fit(x, words)
    assert [*w.classes_] == ["setosa", "versicolor", "virginica"]
    np.testing.assert_array_equal(w.predict_proba(x), c.predict_proba(x))
    assert w.predict(x)[0] == "setosa"
    scores = cross_val_score(clone(CLASSIFIER), x, y, cv=2)
    assert scores.min() > 0.8


@pytest.mark.parametrize("y", [[-1, 1], [-1, 0], [0, 1], ["a", "b"], [True, False], [3.0, 7.0]], ids=str)
def test_two_classes_of_any_kind(y):
    labels = np.array(y)[np.arange(60) % 2]
    c = AAEClassifier(random_state=0, **FEW).fit(X, labels)
    assert sorted(c.classes_) == sorted(y) and set(c.predict(X)) <= set(y)
    assert c.predict_proba(X).shape == (60, 2)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.full(60, 5), "class"),
        (np.full(60, -1), "class"),
        (np.arange(59) % 2, "59|inconsistent"),
        (np.linspace(0, 1, 60), "Unknown label type"),
        (None, "y"),
    ],
    ids=["one", "none", "few", "numbers", "missing"],
)
def test_wrong_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        AAEClassifier(**FEW).fit(X, y)


def test_anomalies_are_what_scores_low():
    x = make_blobs(200, n_features=6, centers=1, random_state=0)[0]
    odd = x[:10] + 30
    d = AAEDetector(contamination=0.05, epochs=150, random_state=0).fit(x)
    assert (d.predict(x) == -1).sum() == 10 and (d.predict(odd) == -1).all()
    assert d.score_samples(odd).max() < d.score_samples(x).min()
    np.testing.assert_array_equal(d.decision_function(x), d.score_samples(x) - d.offset_)
    z, s, h = d.model_.encode(odd), d.model_.encode(x), d.density_.bandwidth_
    squares = np.square((z[:, None] - s) / h).sum(2) / 2
    density = (
        np.log(np.exp(squares.min(1, keepdims=True) - squares).mean(1)) - squares.min(1) - np.log(2 * np.pi * h**2)
    )
    expected = density - np.square((d.model_.reconstruct(odd) - odd) / x.std(0)).sum(1) / 2
    np.testing.assert_allclose(d.score_samples(odd), expected, rtol=1e-6)
    np.testing.assert_array_equal(d.fit_predict(x), d.predict(x))
    for wrong in (0, 0.6, -1):
        with pytest.raises(ValueError, match=re.escape(f"contamination={wrong}: expected a number in (0, 0.5]")):
            AAEDetector(contamination=wrong, **FEW).fit(x)


def test_clusters():
    x, y = make_blobs(90, centers=3, n_features=5, random_state=1)
    c = clone(CHECKED["AAEClusterer"]).set_params(n_clusters=3, random_state=0).fit(x)
    assert adjusted_rand_score(y, c.labels_) > 0.4 and np.array_equal(c.predict(x), c.labels_)
    assert (clone(c).set_params(n_clusters=1).fit_predict(x) == 0).all()
    many = clone(c).set_params(n_clusters=20).fit(x)
    assert {*many.labels_} == {*range(len({*many.labels_}))} and set(many.predict(10 * x)) <= {*many.labels_}


def test_small_tables_get_two_thousand_steps_and_large_ones_an_epoch(monkeypatch):
    seen = []

    class Enough(Exception):
        pass

    def train(cfg, data, progress):
        seen.append(cfg)
        raise Enough

    monkeypatch.setattr("fastaae.estimators.train", train)
    for n in (2, 60, 150, 1000, 300_000):
        with pytest.raises(Enough):
            AAETransformer(config={"device": "cpu"}).fit(np.zeros((n, 2)))
    assert [cfg.epochs * (n // cfg.batch_size) for cfg, n in zip(seen, (2, 60, 150, 1000, 300_000), strict=True)] == [
        2000, 2000, 2000, 2000, 3000,
    ]  # fmt: skip
    assert seen[0].device == "cpu" and seen[0].scale == "standard" and seen[0].n_validation == 0


def test_warnings_of_a_run_pass_and_name_the_caller():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        AAETransformer(epochs=300, hidden=(8,), lr_adversarial=0.5, random_state=0).fit(X)
    assert [w.filename for w in said if "try" in str(w.message)] == [__file__]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": (0,)}, "hidden|integer"),
        ({"batch_size": 0}, "batch_size=0: expected"),
        ({"epochs": 0}, "epochs=0"),
        ({"config": {"epoch": 3}}, "unknown field 'epoch'"),
        ({"random_state": -1}, "seed=-1"),
        ({"random_state": "one"}, "one"),
    ],
)
def test_parameters_are_checked_by_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        AAETransformer(**{**FEW, **fields}).fit(X)


def test_it_is_an_attribute_of_the_package():
    assert fastaae.estimators.AAETransformer is AAETransformer
