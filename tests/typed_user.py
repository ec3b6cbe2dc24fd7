"""A user's program, for pyright alone. Beside each reveal_type is what it has to say, ... standing for anything;
the lines marked as errors have to be found, and no others. Read by test_types.py.
"""

import numpy as np
import torch
from typing_extensions import reveal_type

import fastaae

reveal_type(fastaae.Config)  # type[Config]
cfg = fastaae.preset("mnist-100", epochs=5)
reveal_type(cfg)  # Config
reveal_type(cfg.hidden)  # tuple[int, ...]
fastaae.Config(style_dim="two")  # error: it is an int

reveal_type(fastaae.train)  # (cfg: Config | None = None, ...) -> Run
run = fastaae.train(cfg)
reveal_type(run.model)  # Model
reveal_type(run.models)  # list[Model]
reveal_type(run.metrics["test_error"]["mean"])  # Any
run.modell.sample(64)  # error: misspelt

images = np.zeros((10, 28, 28), np.float32)
tensor = torch.from_numpy(images)
reveal_type(run.model.encode(images))  # ndarray[...]
reveal_type(run.model.encode(tensor))  # Tensor
reveal_type(run.model.predict_proba(tensor))  # Tensor
reveal_type(run.model.predict(images))  # ndarray[...]
reveal_type(run.model.decode(run.model.encode(images)))  # ndarray[...]
reveal_type(run.model.decode([[0.0, 1.0]], labels=[3]))  # ndarray[...]
reveal_type(run.model.decode(run.model.encode(tensor)))  # Tensor
reveal_type(run.model.reconstruct(tensor))  # Tensor
reveal_type(run.model.sample(64))  # ndarray[...]
run.model.encode("images.npy")  # error: neither an array nor a tensor

reveal_type(fastaae.parzen_log_likelihood)  # (queries: ..., samples: ..., sigma: ..., *, ...) -> ParzenResult
reveal_type(run.model.log_likelihood(images, sigma=0.2).per_query)  # ndarray[...]
reveal_type(run.model.ais_log_likelihood(images, 0.2).simulated.upper)  # ndarray[...]
reveal_type(run.model.ais_log_likelihood(images, 0.2).gap)  # float
reveal_type(fastaae.ParzenWindow(bandwidth=0.2).fit(images))  # ParzenWindow
reveal_type(fastaae.load("aae.safetensors"))  # Model
reveal_type(fastaae.Model.from_pretrained("user/aae", revision="0123abc"))  # Model
reveal_type(run.model.export("aae.onnx"))  # Path
fastaae.laod("aae.safetensors")  # error: no such public name
