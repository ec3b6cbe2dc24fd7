"""Every preset trains, resumes and comes back from disk, on a network and a data set far too small to learn much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import fastaae
import fastaae.clusters
import fastaae.data
import fastaae.engine.priors
import fastaae.model
from fastaae.engine.step import Step

N = 240


def images():
    rng = np.random.default_rng(0)
    y = np.arange(N + 40) % 10
    x = rng.random((10, 6, 6))[y] * 0.8 + rng.random((N + 40, 6, 6)) * 0.2
    return {"x": x[:N].astype(np.float32), "y": y[:N], "x_test": x[N:].astype(np.float32), "y_test": y[N:]}


def small(name, **fields):
    cfg = fastaae.preset(name)
    labeled = {} if cfg.n_labeled is None else {"n_labeled": 50}
    fields = {"hidden": (24, 20), "init_std": 0.1, "batch_size": 20, "log_every": 5, "epochs": 2, **labeled, **fields}
    return replace(cfg, **fields)


@pytest.mark.parametrize("name", fastaae.presets())
def test_a_preset_trains_resumes_and_is_loaded(name, tmp_path):
    data = images()
    run = fastaae.train(small(name, out_dir=str(tmp_path / "run"), replicas=2), data, progress=False)
    assert all(np.isfinite(values).all() for values in run.history.values())
    fastaae.train(small(name, out_dir=str(tmp_path / "half"), replicas=2, epochs=1), data, progress=False)
    again = fastaae.train(small(name, replicas=2), data, resume=tmp_path / "half", progress=False)
    assert again.metrics == run.metrics

    model, loaded = run.models[1], fastaae.load(tmp_path / "run", replica=1)
    run.models[1].save(tmp_path / "model.safetensors")
    x = data["x_test"]
    if model.encoder is None:
        np.testing.assert_array_equal(loaded.sample(5, seed=1), model.sample(5, seed=1))
        with pytest.raises(ValueError, match="task .gan. has no encoder"):
            loaded.encode(x)
        names = ["step", "epoch", "discriminator", "generator", "told_apart_x", "dead_units"]
        assert run.metrics == {} and list(run.history) == names
        return
    for other in (loaded, fastaae.load(tmp_path / "model.safetensors")):
        np.testing.assert_array_equal(other.encode(x), model.encode(x))
        np.testing.assert_array_equal(other.sample(5, seed=1), model.sample(5, seed=1))
    z = model.encode(x)
    assert z.shape == (40, model.config.style_dim) and np.isfinite(z).all()
    labels = data["y_test"] if model.n_classes and model.config.task != "embedding" else None
    assert model.decode(z, labels).shape == x.shape
    assert np.isfinite(model.sample(3)).all()


@pytest.mark.parametrize("prior", ["gaussian", "uniform", "mixture", "swiss_roll"])
def test_samples_are_decoded_draws_of_the_prior(prior, monkeypatch):
    cfg = small("mnist-2d", prior=prior, prior_std=2.0)
    weights = [torch.eye(2)[None], torch.zeros(1, 1, 2)]
    identity = fastaae.model.MLP([weights[0]], [weights[1]])
    model = fastaae.model.Model(replace(cfg, output="linear", hidden=()), (2,), 0, identity, identity)
    z = torch.from_numpy(model.sample(20_000, seed=3)).double()
    expected = torch.empty(200_000, 2)
    g = torch.Generator().manual_seed(0)
    fastaae.engine.priors.draw(prior, expected, 2.0, torch.empty(200_000, dtype=torch.int64), g)
    assert (z.norm(dim=1).mean() - expected.double().norm(dim=1).mean()).abs() < 0.05
    torch.testing.assert_close(z.T.cov(), expected.double().T.cov(), rtol=0.03, atol=0.1)
    if prior == "uniform":
        assert z.abs().max() < 2 * 3**0.5 and (z.std() - 2).abs() < 0.03


def ring(out, generator):
    """A prior of the user's own: a circle of radius 3."""
    angle = torch.rand(len(out), generator=generator, device=out.device, dtype=out.dtype) * 2 * torch.pi
    torch.stack([3 * angle.cos(), 3 * angle.sin()], 1, out=out)


def half_a_prior(out, generator):
    out[:, 0] = 1.0


@pytest.mark.filterwarnings("ignore:code_std")  # its codes get there late
def test_a_prior_may_be_the_users_own(tmp_path):
    fields = {"prior": "custom", "epochs": 60, "lr_adversarial": 0.05, "seed": 1}
    cfg, data = small("mnist-2d", **fields, out_dir=str(tmp_path / "run")), images()
    run = fastaae.train(cfg, data, progress=False, prior=ring)
    z = run.model.encode(data["x"])
    assert abs(np.linalg.norm(z, axis=1).mean() - 3) < 0.5
    assert run.model.sample(3).shape == (3, 6, 6)

    half = replace(cfg, epochs=3, out_dir=str(tmp_path / "half"))
    fastaae.train(half, data, progress=False, prior=ring)
    with pytest.raises(ValueError, match="prior=None: the config.s is .custom., expected a function of"):
        fastaae.train(resume=tmp_path / "half", data=data, progress=False)
    again = fastaae.train(replace(cfg, out_dir=None), data, tmp_path / "half", progress=False, prior=ring)
    assert again.metrics == run.metrics

    alone = fastaae.load(tmp_path / "run")
    np.testing.assert_array_equal(alone.encode(data["x"]), z)
    with pytest.raises(ValueError, match="prior=None: the config.s is .custom., expected a function of"):
        alone.sample(3)
    drawn = fastaae.load(tmp_path / "run", prior=ring).sample(3, seed=4)
    np.testing.assert_array_equal(drawn, run.model.sample(3, seed=4))


@pytest.mark.parametrize(
    ("name", "prior", "message"),
    [
        ("gaussian", ring, "expected None where the config has prior='gaussian'"),
        ("custom", None, "prior=None: the config's is 'custom', expected a function of"),
        ("custom", "ring", "prior='ring': the config's is 'custom', expected a function of"),
        ("custom", lambda out, generator: None, r"left 40 of 40 numbers unset or not finite: .* \[20, 2\]"),
        ("custom", half_a_prior, "left 20 of 40 numbers unset"),
        ("custom", lambda out, generator: out + 1, "returned a Tensor: it must fill its first argument"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(name, prior, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fastaae.train(small("mnist-2d", prior=name, out_dir=str(tmp_path / "x")), images(), progress=False, prior=prior)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("bytes_", [False, True], ids=["floats", "bytes"])
def test_a_standardized_model_takes_and_makes_pixels(precision, bytes_, tmp_path):
    data = images()
    data["x"][:, 0] = data["x_test"][:, 0] = 0.2  # a pixel that never changes
    if bytes_:
        data |= {name: np.rint(255 * data[name]).astype(np.uint8) for name in ("x", "x_test")}
    fields = {"scale": "standard", "output": "linear", "precision": precision, "epochs": 20, "lr_reconstruction": 1e-3}
    run = fastaae.train(small("mnist-likelihood", **fields, out_dir=str(tmp_path / "run")), data, progress=False)
    model, unit = run.model, 255 if bytes_ else 1
    train = fastaae.data.from_arrays(data).x_train.double().numpy() / unit
    mean, std = train.mean(0), train.std(0)
    std[std < 1e-6] = 1
    assert (std == 1).sum() == 6
    np.testing.assert_allclose(model.scale.shift[0, 0], mean, rtol=1e-6)
    np.testing.assert_allclose(model.scale.span[0, 0], std, rtol=1e-5)

    x = torch.from_numpy(data["x_test"].reshape(40, -1) / unit).to(model.scale.span.dtype)
    seen = (x - torch.from_numpy(mean)) / torch.from_numpy(std)
    z = model.encoder(seen.to(x.dtype))
    torch.testing.assert_close(torch.from_numpy(model.encode(data["x_test"])), z, rtol=1e-4, atol=1e-4)
    made = model.decoder(z).double()
    expected = (made.numpy() * std + mean).reshape(-1, 6, 6)
    expected = expected.clip(0, 1) if bytes_ else expected
    np.testing.assert_allclose(model.reconstruct(data["x_test"]), expected, atol=1e-5)
    loss = 0.5 * (made - seen).square().sum().item() / 40
    assert abs(run.metrics["test_reconstruction"]["mean"] / loss - 1) < 1e-4
    assert loss < 0.5 * seen.square().sum().item() / 40  # better than the mean image

    loaded = fastaae.load(tmp_path / "run")
    model.save(tmp_path / "model.safetensors")
    for other in (loaded, fastaae.load(tmp_path / "model.safetensors")):
        np.testing.assert_array_equal(other.reconstruct(data["x_test"]), model.reconstruct(data["x_test"]))
        np.testing.assert_array_equal(other.sample(5, seed=1), model.sample(5, seed=1))
    r = model.log_likelihood(data["x_test"], 500, 0.3)
    samples = torch.from_numpy(model.sample(500, 0).reshape(500, -1))
    assert abs(r.mean - fastaae.parzen_log_likelihood(data["x_test"].reshape(40, -1), samples, 0.3).mean) < 1e-6


def test_clusters_are_scored_against_labels(tmp_path):
    data = images()
    run = fastaae.train(small("mnist-clusters-16", out_dir=str(tmp_path / "run")), data, progress=False)
    model, arrays = run.model, fastaae.data.from_arrays(data)
    q_valid, q = (model.predict_proba(x.numpy()) for x in (arrays.x_valid, arrays.x_test))
    expected = fastaae.clusters.score_clusters(q_valid, arrays.y_valid.numpy(), q, data["y_test"])
    assert "test_error" not in run.metrics and q.shape == (40, 16)
    for name, value in expected.items():
        assert run.metrics[f"test_{name}"]["mean"] == value
    unlabelled = fastaae.train(
        small("mnist-clusters-30", epochs=1, out_dir=str(tmp_path / "x")), data["x"], progress=False
    )
    assert list(unlabelled.metrics) == ["valid_reconstruction"]


def test_a_supervised_model_needs_the_label(tmp_path):
    data = images()
    run = fastaae.train(small("mnist-style", out_dir=str(tmp_path / "run")), data, progress=False)
    model, x, y = run.model, data["x_test"], data["y_test"]
    decoded = model.reconstruct(x, y)
    np.testing.assert_array_equal(decoded, model.decode(model.encode(x), y))
    loss = 0.5 * np.square(decoded - x).sum() / len(x)
    assert abs(run.metrics["test_reconstruction"]["mean"] - loss) < 1e-4 * loss
    with pytest.raises(ValueError, match="takes labels"):
        model.reconstruct(x)
    with pytest.raises(ValueError, match="has no label head"):
        model.predict(x)
    with pytest.raises(ValueError, match="task='supervised' needs labels with the training data"):
        fastaae.train(small("mnist-style", out_dir=str(tmp_path / "x")), data["x"], progress=False)


@pytest.mark.parametrize("posterior", ["deterministic", "gaussian", "universal"])
def test_a_seed_samples_the_posterior(posterior, tmp_path):
    noise = {"noise_layer": 1} if posterior == "universal" else {}
    cfg = small("mnist-likelihood", posterior=posterior, **noise, epochs=1, out_dir=str(tmp_path / "run"))
    model, x = fastaae.train(cfg, images(), progress=False).model, images()["x"][:1].repeat(2000, 0)
    centre, z = model.encode(x), model.encode(x, seed=3)
    np.testing.assert_allclose(centre, centre[:1].repeat(2000, 0), atol=1e-5)
    np.testing.assert_array_equal(z, model.encode(x, seed=3))
    spread = np.zeros(8)
    if posterior == "gaussian":
        spread = np.exp(model.encoder(torch.from_numpy(x[:1]).flatten(1))[0, 8:].numpy() / 2)
    if posterior == "universal":
        assert (z.std(0) > 1e-3).all()
    else:
        np.testing.assert_allclose(z.std(0), spread, rtol=0.1, atol=1e-5)
        np.testing.assert_allclose(z.mean(0), centre[0], atol=0.1 * spread.max() + 1e-5)


@pytest.mark.parametrize("name", ["2d-1000", "2d-unsupervised", "10d-100"])
def test_an_embedding_is_the_sum_of_head_and_style(name, tmp_path):
    data = images()
    run = fastaae.train(small(f"mnist-embedding-{name}", out_dir=str(tmp_path / "run")), data, progress=False)
    model, x = run.model, data["x_test"]
    z, y = (t.numpy() for t in model.code(torch.from_numpy(x).flatten(1)))
    heads = model.heads.weight[0].numpy()
    np.testing.assert_allclose(model.encode(x), y @ heads + z, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.reconstruct(x), model.decode(model.encode(x)))
    given = model.decode(z, data["y_test"])
    np.testing.assert_allclose(given, model.decode(z + heads[data["y_test"]]), rtol=1e-4, atol=1e-5)
    assert ("test_error" in run.metrics) != ("test_cluster_error" in run.metrics) == ("unsupervised" in name)
    if name == "10d-100":
        np.testing.assert_array_equal(heads, 10 * np.eye(10, dtype=np.float32))


@pytest.mark.parametrize("name", fastaae.presets())
def test_the_products_of_a_step_are_known(name, bench_step):
    step = bench_step.Step(small(name), fastaae.data.from_arrays(images()), torch.device("cpu"))
    for as_step in (True, False):
        run, flops = bench_step.products(step, as_step)
        run()
        assert flops > 0


def test_a_universal_posterior_fills_a_prior_that_two_images_cannot():
    x = np.zeros((120, 1, 4), np.float32)
    x[::2, 0, :2] = x[1::2, 0, 2:] = 1
    normal = [-1.28, -0.67, 0, 0.67, 1.28]  # quantiles
    fields = {"style_dim": 1, "prior_std": 1.0, "hidden": (32, 32), "init_std": 0.2, "regularizer": "mmd"}
    worst = {}
    for posterior in ("deterministic", "universal"):
        noise = {"noise_dim": 2} if posterior == "universal" else {}
        cfg = fastaae.Config(posterior=posterior, **noise, optimizer="adam", lr_reconstruction=3e-3, **fields)
        step = Step(cfg, fastaae.data.from_arrays(x, 20), torch.device("cpu"))
        for epoch in range(400):
            step.start_epoch(min(epoch, 40))
            step.slot.zero_()
            step()
        model = fastaae.model.Model(cfg, (1, 4), 0, step.networks["encoder"], step.networks["decoder"])
        z = model.encode(x.repeat(20, 0), seed=0)[:, 0]
        worst[posterior] = np.abs(np.quantile(z, [0.1, 0.25, 0.5, 0.75, 0.9]) - normal).max()
    assert worst["universal"] < 0.2 < 0.6 < worst["deterministic"], worst
